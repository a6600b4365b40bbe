"""From logits to probabilities.

Every function accumulates in float32 (float64 stays float64) whatever the logits' type, is stable for logits of ±1e4
and for -inf (a class that cannot be), and differentiates to any order there. A row without a possible class has no
distribution: it gives NaN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> jax.Array:
    """`x` in the type that cnnlab accumulates in: float64 stays, everything else becomes float32."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _scores(logits: ArrayLike, temperature: ArrayLike, where: ArrayLike | None) -> jax.Array:
    """logits / temperature, -inf where a class is masked or impossible."""
    if isinstance(temperature, (int, float, np.number)) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    z = as_float(logits)
    possible = z != -jnp.inf if where is None else (z != -jnp.inf) & where
    # The inner select keeps d(-inf / t)/dt = inf out of the backward pass, where 0 * inf would be NaN.
    return jnp.where(possible, jnp.where(possible, z, 0) / jnp.asarray(temperature, z.dtype), -jnp.inf)


def _shifted(z: jax.Array, axis: int) -> jax.Array:
    """z minus its maximum, so that no exponential overflows; softmax does not see the shift."""
    return z - lax.stop_gradient(jnp.max(z, axis, keepdims=True))


def softmax(
    logits: ArrayLike, *, axis: int = -1, temperature: ArrayLike = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """Probabilities that grow with the logits and sum to one.

        p_i = exp(z_i / t) / sum_j exp(z_j / t)

    Args:
      logits: float[..., K], any float type; -inf gives probability 0.
      axis: where the classes lie.
      temperature: t > 0; towards 0 it becomes the argmax, towards infinity uniform.
      where: bool[..., K], the classes that exist; the others get probability 0.

    Returns:
      float32[..., K], in [0, 1], summing to 1 over `axis`; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive.

    Source: Bridle, 1990, "Probabilistic interpretation of feedforward classification network outputs".

    >>> [f"{p:.3f}" for p in softmax([2.0, 1.0, 0.1])]
    ['0.659', '0.242', '0.099']
    """
    unnormalised = jnp.exp(_shifted(_scores(logits, temperature, where), axis))
    return unnormalised / jnp.sum(unnormalised, axis, keepdims=True)


def log_softmax(
    logits: ArrayLike, *, axis: int = -1, temperature: ArrayLike = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """Logarithms of the softmax probabilities, exact where the probability itself underflows.

        log p_i = z_i / t - log sum_j exp(z_j / t)

    Args:
      logits, axis, temperature, where: as in `softmax`.

    Returns:
      float32[..., K], at most 0, in nats; -inf for an impossible class; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive.

    >>> print(log_softmax([0.0, 1e4]))
    [-10000.      0.]
    """
    z = _shifted(_scores(logits, temperature, where), axis)
    return z - jnp.log(jnp.sum(jnp.exp(z), axis, keepdims=True))


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
    return lax.logistic(_scores(logits, temperature, None))


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
    z = _scores(logits, temperature, None)
    return -jnp.logaddexp(-z, jnp.zeros_like(z))


def predict(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> jax.Array:
    """The class of the largest logit; the first of them on a tie. Softmax keeps the order, so it is not needed here.

    Args:
      logits: float[..., K].
      axis: where the classes lie.
      where: bool[..., K], the classes that exist.

    Returns:
      int32[...], class ids.

    >>> print(predict([[2.0, 1.0, 0.1], [0.0, 3.0, 3.0]]))
    [0 1]
    """
    return jnp.argmax(_scores(logits, 1.0, where), axis).astype(jnp.int32)
