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

from cnnlab import tempered


def as_float(x: ArrayLike) -> jax.Array:
    """`x` in the type that cnnlab accumulates in: float64 stays, everything else becomes float32.

    >>> as_float(jnp.zeros(3, jnp.bfloat16)).dtype
    dtype('float32')
    """
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
    top = lax.stop_gradient(jnp.max(z, axis, keepdims=True))
    return z - jnp.where(jnp.isfinite(top), top, 0)  # the where also keeps XLA from storing the difference


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


def tempered_softmax(
    logits: ArrayLike,
    t: ArrayLike,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Softmax with another exponential: heavy tails for t > 1, probabilities of exactly 0 for t < 1.

        p_i = exp_t(z_i - c),  exp_t(x) = max(0, 1 + (1 - t) x)^(1 / (1 - t)),  c such that sum_i p_i = 1

    Differentiable in the logits and in t, by the implicit function theorem at the solution c.

    Args:
      logits, axis, temperature, where: as in `softmax`.
      t: in [-8, 10]; 1 is softmax. Below 0 (entmax beyond alpha = 2) an entry next to the border of the support is
        uncertain by eps^(1 / (1 - t)), as the formula is.

    Returns:
      float32[..., K], in [0, 1], summing to 1 over `axis`; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive, or t one outside its range.

    Source: Amid et al., 2019, https://arxiv.org/abs/1906.03361; the same family with t = 2 - alpha is entmax.

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
    z = jnp.moveaxis(_scores(logits, temperature, where), axis, -1)
    z = z - lax.stop_gradient(jnp.max(z, -1, keepdims=True))  # NaN where no class is possible
    a = float(1 - t) if isinstance(t, (int, float, np.number)) else 1 - jnp.asarray(t, z.dtype)
    return jnp.moveaxis(tempered.probabilities(z, a), -1, axis)


def log_tempered_softmax(logits: ArrayLike, t: float) -> jax.Array:
    """Logarithms of tempered_softmax over the last axis, also where it underflows.

    Args:
      logits: float[..., K].
      t: in [-8, 10], not 1.

    Returns:
      float32[..., K], at most 0, in nats; -inf where the probability is 0; NaN where no class is possible.

    >>> print(log_tempered_softmax([0.0, -1e4], 1.05).round(1))
    [   0.  -124.3]
    """
    z = as_float(logits)
    return tempered.log_probabilities(z - lax.stop_gradient(jnp.max(z, -1, keepdims=True)), float(1 - t))


def sparsemax(
    logits: ArrayLike, *, axis: int = -1, temperature: ArrayLike = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """The distribution nearest to the logits: piecewise linear, with exact zeros.

        p = argmin over distributions of ||p - z||^2 = max(0, z - c),  c such that sum_i p_i = 1

    Args:
      logits, axis, temperature, where: as in `softmax`.

    Returns:
      float32[..., K], in [0, 1], summing to 1 over `axis`; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive.

    Source: Martins & Astudillo, 2016, "From softmax to sparsemax", https://arxiv.org/abs/1602.02068

    >>> print(sparsemax([1.0, 0.5, -1.0]))
    [0.75 0.25 0.  ]
    """
    return tempered_softmax(logits, 0.0, axis=axis, temperature=temperature, where=where)


def entmax15(
    logits: ArrayLike, *, axis: int = -1, temperature: ArrayLike = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """Halfway between softmax and sparsemax: smooth, with exact zeros. entmax with alpha = 1.5.

        p_i = max(0, z_i / 2 - c)^2,  c such that sum_i p_i = 1

    Args:
      logits, axis, temperature, where: as in `softmax`.

    Returns:
      float32[..., K], in [0, 1], summing to 1 over `axis`; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive.

    Source: Peters, Niculae & Martins, 2019, "Sparse sequence-to-sequence models", https://arxiv.org/abs/1905.05702

    >>> [f"{p:.4f}" for p in entmax15([1.0, 0.0, -3.0])]
    ['0.8307', '0.1693', '0.0000']
    """
    return tempered_softmax(logits, 0.5, axis=axis, temperature=temperature, where=where)


def entmax(
    logits: ArrayLike,
    alpha: ArrayLike = 1.5,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The family from softmax (alpha = 1) over entmax15 (1.5) to sparsemax (2) and beyond; sparser as alpha grows.

        p_i = max(0, (alpha - 1) z_i - c)^(1 / (alpha - 1)),  c such that sum_i p_i = 1

    Args:
      logits, axis, temperature, where: as in `softmax`.
      alpha: in [1, 10]; differentiable, so it may be learned. An array must broadcast against float[...], the batch.

    Returns:
      float32[..., K], in [0, 1], summing to 1 over `axis`; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive, or alpha one outside its range.

    Source: Peters, Niculae & Martins, 2019, https://arxiv.org/abs/1905.05702; the derivative in alpha: Correia et al.,
    2019, "Adaptively sparse transformers", https://arxiv.org/abs/1909.00015

    >>> [f"{p:.4f}" for p in entmax([1.0, 0.0, -3.0], 1.2)]
    ['0.7657', '0.2342', '0.0001']
    """
    if isinstance(alpha, (int, float, np.number)):
        if not 1 <= alpha <= 10:
            raise ValueError(f"alpha must lie in [1, 10], got {alpha}")
        return tempered_softmax(logits, 2.0 - float(alpha), axis=axis, temperature=temperature, where=where)
    return tempered_softmax(logits, 2 - alpha, axis=axis, temperature=temperature, where=where)


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

        p = softmax((z + g) / t),  g_i = -log(-log u_i), u uniform;  argmax p is a sample from softmax(z)

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
