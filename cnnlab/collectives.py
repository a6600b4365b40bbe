"""Sums and means over the devices that share a batch, and keys that do not depend on how they share
it.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar("T")


def example_keys(key: jax.Array, batch: int, axis_name: str | None = None) -> jax.Array:
    """Derive one key per example from its place in the global batch, so that draws do not depend on
    how devices share the batch.

    Args:
      key: a typed key, the same on every device.
      batch: examples that this device holds.
      axis_name: the mesh axis that shares the batch; None on one device.

    Returns:
      key[batch].
    """
    first = 0 if axis_name is None else lax.axis_index(axis_name) * batch
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(batch))


def mean(tree: T, axis_name: str | None) -> T:
    """Average the devices' means over equal parts of the batch; the identity on one device."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def total(tree: T, axis_name: str | None) -> T:
    """Sum over devices; the identity on one device."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


def size(axis_name: str | None) -> int:
    """Count the devices that share the batch."""
    return 1 if axis_name is None else lax.axis_size(axis_name)
