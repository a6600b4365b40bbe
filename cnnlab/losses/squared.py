"""Losses that square a difference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnnlab.losses import _labels
from cnnlab.softmax import softmax


def mean_squared_error(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Squared distance between the softmax probabilities and the target: the Brier score.

        L(z, q) = sum_k (p_k - q_k)^2,  p = softmax(z), q one-hot for a class id

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions.

    Returns:
      float32[...], in [0, 2] (no unit); NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, or a visible id outside [0, K).

    Source: Brier, 1950, "Verification of forecasts expressed in terms of probability", Mon. Weather Rev. 78.

    >>> import jax.numpy as jnp
    >>> print(mean_squared_error(jnp.zeros(4), 1))
    0.75
    """
    logits, labels = _labels.check(logits, labels)
    classes = logits.shape[-1]
    error = softmax(logits) - _labels.distribution(labels, classes, logits.dtype)
    return _labels.poison(jnp.sum(error**2, -1), labels, classes)
