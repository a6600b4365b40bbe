"""Layers that know how devices share the batch, activations by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cnnlab.collectives import example_keys
from cnnlab.errors import unknown

T = TypeVar("T")

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": partial(nn.gelu, approximate=False),
    "silu": nn.silu,
    "tanh": nn.tanh,
}
# Maxima commute with these, so pooling may come first and leave them a quarter.
INCREASING = ("relu", "tanh")


def named(kind: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise unknown(kind, str(name), table)
    return table[name]


class Dropout(nn.Module):
    """Zero each unit with probability `rate`, scale the rest by 1 / (1 - rate).

    flax's own layer draws one mask for the array it sees, so under pmap each device would draw the
    same one; here each example's mask comes from its place in the global batch.

    Source: Srivastava et al., 2014, "Dropout", JMLR 15.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Apply dropout: float[B, ...] -> float[B, ...]; the identity unless `train`."""
        if not train or self.rate == 0:
            return x
        keys = example_keys(self.make_rng("dropout"), x.shape[0], self.axis_name)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros_like(x))


class _Norm(nn.Module):
    """Batch norm over the global batch, or nothing."""

    enabled: bool
    dtype: DTypeLike | None
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not self.enabled:
            return x
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            dtype=self.dtype,
            axis_name=self.axis_name if train else None,
        )(x)
