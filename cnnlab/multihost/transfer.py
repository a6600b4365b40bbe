"""Arrays to and from the devices of all processes of a run."""

from __future__ import annotations

from typing import TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab.multihost import processes
from cnnlab.types import PyTree

T = TypeVar("T")


def put(tree: T, sharding: jax.sharding.Sharding | None) -> T:
    """Put arrays that every process has on the devices of a sharding."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put_leaf(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put_leaf(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        host = np.asarray(leaf)  # device_put would have the processes compare it, bit by bit
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put_leaf, tree)


@overload
def fetch(tree: jax.Array | np.ndarray) -> np.ndarray: ...


@overload
def fetch(tree: dict[str, jax.Array]) -> dict[str, np.ndarray]: ...


@overload
def fetch(tree: T) -> T: ...


def fetch(tree: PyTree) -> PyTree:
    """Fetch arrays to the host, in every process, also from other processes' devices."""

    def fetch_leaf(leaf: object) -> object:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(tree if processes.count() == 1 else jax.tree.map(fetch_leaf, tree))
