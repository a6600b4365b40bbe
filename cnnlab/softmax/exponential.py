"""Softmax, its logarithm, samples and the most likely class."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cnnlab.softmax._scores import as_float, scores


def _shifted(z: jax.Array, axis: int) -> jax.Array:
    """Subtract the maximum, so that no exponential overflows; softmax is invariant to the shift."""
    top = lax.stop_gradient(jnp.max(z, axis, keepdims=True))
    # The where also keeps XLA from storing the difference
    return z - jnp.where(jnp.isfinite(top), top, 0)


def softmax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
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

    Source: Bridle, 1990, "Probabilistic interpretation of feedforward classification network
    outputs".

    >>> [f"{p:.3f}" for p in softmax([2.0, 1.0, 0.1])]
    ['0.659', '0.242', '0.099']
    """
    unnormalised = jnp.exp(_shifted(scores(logits, temperature, where), axis))
    return unnormalised / jnp.sum(unnormalised, axis, keepdims=True)


def log_softmax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Logarithms of the softmax probabilities, exact where the probability itself underflows.

        log p_i = z_i / t - log sum_j exp(z_j / t)

    Args:
      logits, axis, temperature, where: as in `softmax`.

    Returns:
      float32[..., K], at most 0, in nats; -inf for an impossible class; NaN where no class is
      possible.

    Raises:
      ValueError: temperature is a number and not positive.

    >>> print(log_softmax([0.0, 1e4]))
    [-10000.      0.]
    """
    z = _shifted(scores(logits, temperature, where), axis)
    return z - jnp.log(jnp.sum(jnp.exp(z), axis, keepdims=True))


def gumbel_softmax(
    key: jax.Array,
    logits: ArrayLike,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    hard: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    """A differentiable sample of a class: one-hot as the temperature goes to 0.

        p = softmax((z + g) / t),  g_i = -log(-log u_i), u uniform;
        argmax p is a sample from softmax(z)

    Args:
      key: of jax.random.
      logits, axis, where: as in `softmax`.
      temperature: t > 0.
      hard: return the one-hot sample, with the gradient of the soft one (straight-through).

    Returns:
      float32[..., K], in [0, 1], summing to 1 over `axis`; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive.

    Source: Jang, Gu & Poole, 2017, https://arxiv.org/abs/1611.01144; Maddison, Mnih & Teh, 2017,
    https://arxiv.org/abs/1611.00712

    >>> print(gumbel_softmax(jax.random.key(0), [0.0, 5.0, 0.0], hard=True))
    [0. 1. 0.]
    """
    z = as_float(logits)
    noisy = z + jax.random.gumbel(key, z.shape, z.dtype)
    soft = softmax(noisy, axis=axis, temperature=temperature, where=where)
    if not hard:
        return soft
    sample = jax.nn.one_hot(jnp.argmax(soft, axis), soft.shape[axis], axis=axis, dtype=soft.dtype)
    return lax.stop_gradient(sample - soft) + soft


def predict(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> jax.Array:
    """The class of the largest logit; the first of them on a tie. Softmax keeps the order, so it is
    not needed here.

    Args:
      logits: float[..., K].
      axis: where the classes lie.
      where: bool[..., K], the classes that exist.

    Returns:
      int32[...], class ids.

    >>> print(predict([[2.0, 1.0, 0.1], [0.0, 3.0, 3.0]]))
    [0 1]
    """
    return jnp.argmax(scores(logits, 1.0, where), axis).astype(jnp.int32)
