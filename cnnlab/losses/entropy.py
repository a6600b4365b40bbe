"""Losses that read the logarithm of a probability."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from cnnlab.losses import _labels
from cnnlab.softmax import log_softmax


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Surprise at the true class under the softmax probabilities.

        L(z, y) = -log p_y,  p = softmax(z);  for a distribution q: -sum_k q_k log p_k

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions.

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, or a visible id outside [0, K).

    Source: Good, 1952, "Rational decisions", J. R. Stat. Soc. B 14.

    >>> import jax.numpy as jnp
    >>> print(cross_entropy(jnp.log(jnp.array([0.7, 0.2, 0.1])), 0).round(4))
    0.3567
    """
    logits, labels = _labels.check(logits, labels)
    return _labels.select(-log_softmax(logits), labels)
