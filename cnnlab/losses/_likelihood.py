"""log p of the true class, which most losses are functions of, and the focal factor on
top of it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cnnlab.losses import _labels
from cnnlab.softmax import as_float, log_softmax


def of_log_probability(
    function: Callable[[jax.Array], jax.Array], logits: ArrayLike, labels: ArrayLike
) -> jax.Array:
    """Compute function(log p_y) for a class id y, or sum_k q_k function(log p_k) for a
    distribution q, with p = softmax(z).

    Args:
      function: elementwise; finite in value and slope for every finite argument; NaN stays NaN.
      logits, labels: as given to the public function.

    Returns:
      float32[...]; for ids as accurate as float32 holds, also where p_y is near 1.

    Raises:
      ValueError: as `_labels.check`.
    """
    logits, labels = _labels.check(logits, labels)
    if _labels.is_ids(labels):
        return function(_labels.poison(log_probability(logits, labels), labels, logits.shape[-1]))
    return jnp.sum(labels * function(_labels.bounded(log_softmax(logits), labels)), -1)


@jax.custom_jvp
def log_probability(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute log p_y of checked ids under softmax(logits): float32[..., K], int32[...] ->
    float32[...], at most 0.
    """
    return _terms(logits, labels)[0]


def _terms(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute log p_y; the other classes' exp(z - max z), 0 at y; and p's denominator on that
    scale.
    """
    logits = as_float(logits)
    top = lax.stop_gradient(jnp.max(logits, -1))
    top = jnp.where(jnp.isfinite(top), top, 0)  # also keeps XLA from storing logits - top
    z_y = _labels.pick(logits, labels) - top
    others = jnp.where(
        _labels.is_label(labels, logits.shape[-1]), 0, jnp.exp(logits - top[..., None])
    )
    rest = jnp.sum(others, -1)
    # Leaving y out of the sum keeps 1 - p_y from being rounded to an ulp of 1.
    return z_y - jnp.log1p(rest + jnp.expm1(z_y)), others, rest + jnp.exp(z_y)


@log_probability.defjvp
def _(primals, tangents):
    logits, labels = primals
    slope = as_float(tangents[0])
    value, others, total = _terms(logits, labels)
    # (1 - p_y) dz_y - sum_{j != y} p_j dz_j, each factor to the last digits however near p_y is to
    # 1 or 0
    left = jnp.sum(others, -1) * _labels.pick(slope, labels)
    return value, (left - jnp.sum(others * slope, -1)) / total


def focal_term(log_p: jax.Array, gamma: float) -> jax.Array:
    """Compute -(1 - p)^gamma log p, with derivatives of every order also for gamma < 1 at p = 1.

    There (1 - p)^(gamma - n) overflows before dp/dz makes up for it. Below 1e-12 the term is 0 to
    float32 anyway.
    """
    return focused(-jnp.expm1(log_p), -log_p, gamma)


def focused(miss: jax.Array, loss: jax.Array, gamma: float) -> jax.Array:
    """Compute miss^gamma loss, or 0 where miss < 1e-12."""
    certain = miss < 1e-12
    # Products instead of a log
    exponent = int(gamma) if isinstance(gamma, float) and gamma.is_integer() else gamma
    return jnp.where(certain, 0, jnp.where(certain, 0.5, miss) ** exponent * loss)
