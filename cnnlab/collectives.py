"""Sums and means over the devices that share a batch, and keys that do not depend on how they share
it, nor on the microbatches that each takes its part in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar("T")

# (number, count) of the microbatch that is being traced. Models see a microbatch as they would a
# batch, and no argument of theirs could say which it is.
_MICROBATCH: ContextVar[tuple[jax.Array, int] | None] = ContextVar("microbatch", default=None)


@contextlib.contextmanager
def microbatch(number: jax.Array, count: int) -> Iterator[None]:
    """Let `example_keys` know, within the body, which of equal parts of a device's batch it is
    called for.

    Args:
      number: int32[], from 0.
      count: of the parts.
    """
    token = _MICROBATCH.set((number, count))
    try:
        yield
    finally:
        _MICROBATCH.reset(token)


def example_keys(key: jax.Array, batch: int, axis_name: str | None = None) -> jax.Array:
    """Derive one key per example from its place in the global batch, so that draws do not depend on
    how devices share the batch or divide their part of it (`microbatch`).

    Args:
      key: a typed key, the same on every device.
      batch: examples that this device holds, of a microbatch within one.
      axis_name: the mesh axis that shares the batch; None on one device.

    Returns:
      key[batch].
    """
    number, count = _MICROBATCH.get() or (None, 1)
    first = 0 if axis_name is None else lax.axis_index(axis_name) * (count * batch)
    if number is not None:
        first += number * batch
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
