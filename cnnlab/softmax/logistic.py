"""Sigmoid: the probability of each class by itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cnnlab.softmax._scores import scores


def sigmoid(logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Probability of yes for independent yes/no questions: 1 / (1 + exp(-z / t)).

    Args:
      logits: float[...], one per question.
      temperature: t > 0.

    Returns:
      float32[...] in [0, 1].

    Raises:
      ValueError: temperature is a number and not positive.

    >>> print(sigmoid([0.0, -1e4]))
    [0.5 0. ]
    """
    return lax.logistic(scores(logits, temperature, None))


def log_sigmoid(logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> jax.Array:
    """Logarithm of the sigmoid: -log(1 + exp(-z / t)).

    Args:
      logits: float[...], one per question.
      temperature: t > 0.

    Returns:
      float32[...], at most 0, in nats.

    Raises:
      ValueError: temperature is a number and not positive.

    >>> print(log_sigmoid([0.0, -1e4]))
    [-6.931472e-01 -1.000000e+04]
    """
    z = scores(logits, temperature, None)
    return -jnp.logaddexp(-z, jnp.zeros_like(z))
