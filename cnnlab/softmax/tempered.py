"""Softmax with the exponential of Tsallis' statistics, with heavier tails or a bounded support."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cnnlab.softmax import _normaliser
from cnnlab.softmax._scores import as_float, scores
from cnnlab.softmax.exponential import softmax


def tempered_softmax(
    logits: ArrayLike,
    t: ArrayLike,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Softmax with another exponential: heavy tails for t > 1, probabilities of exactly 0 for
    t < 1.

        p_i = exp_t(z_i - c),  exp_t(x) = max(0, 1 + (1 - t) x)^(1 / (1 - t)),
        c such that sum_i p_i = 1

    Differentiable in the logits and in t, by the implicit function theorem at the solution c.

    Args:
      logits, axis, temperature, where: as in `softmax`.
      t: in [-8, 10]; 1 is softmax. Below 0 (entmax beyond alpha = 2) an entry next to the border of
        the support is uncertain by eps^(1 / (1 - t)), as the formula is.

    Returns:
      float32[..., K], in [0, 1], summing to 1 over `axis`; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive, or t one outside its range.

    Source: Amid et al., 2019, https://arxiv.org/abs/1906.03361; the same family with t = 2 - alpha
    is entmax.

    >>> for t in (0.5, 1.0, 2.0):
    ...     print([f"{p:.3f}" for p in tempered_softmax([1.0, 0.0, -9.0], t)])
    ['0.831', '0.169', '0.000']
    ['0.731', '0.269', '0.000']
    ['0.557', '0.358', '0.085']
    """
    if isinstance(t, (int, float, np.number)) and not -8 <= t <= 10:
        raise ValueError(f"t must lie in [-8, 10], got {t}")
    if isinstance(t, (int, float)) and t == 1:
        return softmax(logits, axis=axis, temperature=temperature, where=where)
    z = jnp.moveaxis(scores(logits, temperature, where), axis, -1)
    z = z - lax.stop_gradient(jnp.max(z, -1, keepdims=True))  # NaN where no class is possible
    a = float(1 - t) if isinstance(t, (int, float, np.number)) else 1 - jnp.asarray(t, z.dtype)
    return jnp.moveaxis(_normaliser.probabilities(z, a), -1, axis)


def log_tempered_softmax(logits: ArrayLike, t: float) -> jax.Array:
    """Logarithms of tempered_softmax over the last axis, also where it underflows.

    Args:
      logits: float[..., K].
      t: in [-8, 10], not 1.

    Returns:
      float32[..., K], at most 0, in nats; -inf where the probability is 0; NaN where no class is
      possible.

    >>> print(log_tempered_softmax([0.0, -1e4], 1.05).round(1))
    [   0.  -124.3]
    """
    z = as_float(logits)
    return _normaliser.log_probabilities(
        z - lax.stop_gradient(jnp.max(z, -1, keepdims=True)), float(1 - t)
    )
