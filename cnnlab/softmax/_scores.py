"""From logits of any type to scores: accumulated in float, divided by the temperature, masked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> jax.Array:
    """`x` in the type that cnnlab accumulates in: float64 stays, everything else becomes float32.

    >>> as_float(jnp.zeros(3, jnp.bfloat16)).dtype
    dtype('float32')
    """
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def scores(logits: ArrayLike, temperature: ArrayLike, where: ArrayLike | None) -> jax.Array:
    """Compute logits / temperature, with -inf where a class is masked or impossible."""
    if isinstance(temperature, (int, float, np.number)) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    z = as_float(logits)
    possible = z != -jnp.inf if where is None else (z != -jnp.inf) & where
    # The inner select keeps d(-inf / t)/dt = inf out of the backward pass, where 0 * inf would be
    # NaN.
    return jnp.where(
        possible, jnp.where(possible, z, 0) / jnp.asarray(temperature, z.dtype), -jnp.inf
    )
