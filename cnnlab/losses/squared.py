"""Losses that square a difference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnnlab.losses import _labels
from cnnlab.losses.entropy import cross_entropy
from cnnlab.softmax import softmax


def mean_squared_error(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Squared distance between the softmax probabilities and the target: the Brier score.

        L(z, y) = sum_k (p_k - e_k)^2, e one-hot;  for a distribution q: sum_k (p_k - q_k)^2

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions.

    Returns:
      float32[...], in [0, 2] (no unit); NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, or a visible id outside [0, K).

    Source: Brier, 1950, "Verification of forecasts expressed in terms of probability", Mon. Weather
    Rev. 78, https://doi.org/10.1175/1520-0493%281950%29078%3C0001%3AVOFEIT%3E2.0.CO%3B2

    >>> import jax.numpy as jnp
    >>> print(mean_squared_error(jnp.zeros(4), 1))
    0.75
    """
    logits, labels = _labels.check(logits, labels)
    classes = logits.shape[-1]
    error = softmax(logits) - _labels.distribution(labels, classes, logits.dtype)
    return _labels.poison(jnp.sum(error**2, -1), labels, classes)


def squared_logits(
    logits: ArrayLike,
    labels: ArrayLike,
    k: float = 1.0,
    m: float = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Least squares on the logits themselves, without softmax.

        L(z, y) = (k (z_y - m)^2 + sum_{j != y} z_j^2) / K

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      k: in (0, inf), the weight of the true class.
      m: in (0, inf), the target of the true class; the paper takes larger k and m for many classes.
      where: bool[..., K], the classes that exist; K counts them. A logit of -inf has no finite
        square.

    Returns:
      float32[...], at least 0 (squared logits); NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or k or m outside
        its range.

    Source: Hui & Belkin, 2020, "Evaluation of neural architectures trained with square loss vs
    cross-entropy in classification tasks", https://arxiv.org/abs/2006.07322

    >>> print(squared_logits([0.5, 2.0], 0))  # (0.25 + 4) / 2
    2.125
    """
    k, m = _labels.in_range("k", k, "(0, inf)"), _labels.in_range("m", m, "(0, inf)")
    logits, labels = _labels.check(logits, labels)
    z, _, count = _existing(logits, where)
    q = _labels.distribution(labels, logits.shape[-1], logits.dtype)
    squares = jnp.sum(k * q * (z - m) ** 2, -1) + _of_the_others(z, q)
    return _labels.poison(squares / count, labels, logits.shape[-1])


def squentropy(logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """Cross-entropy plus the mean squared logit of the wrong classes.

        L(z, y) = -log p_y + sum_{j != y} z_j^2 / (K - 1)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      where: bool[..., K], the classes that exist; K counts them. A logit of -inf has no finite
        square.

    Returns:
      float32[...], at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, or a visible id outside [0, K).

    Source: Hui, Belkin & Wright, 2023, "Cut your losses with squentropy",
    https://arxiv.org/abs/2302.03952

    >>> print(f"{squentropy([0.0, 0.0, 2.0], 0):.4f}")  # log(2 + e^2) + 4 / 2
    4.2395
    """
    logits, labels = _labels.check(logits, labels)
    z, masked, count = _existing(logits, where)
    q = _labels.distribution(labels, logits.shape[-1], logits.dtype)
    squares = _labels.poison(_of_the_others(z, q), labels, logits.shape[-1])
    return cross_entropy(masked, labels) + squares / (count - 1)


def logit_penalty(
    logits: ArrayLike, labels: ArrayLike, beta: float = 6e-4, where: ArrayLike | None = None
) -> jax.Array:
    """Cross-entropy plus the squared length of the logits.

        L(z, y) = -log p_y + beta sum_k z_k^2

    It sees the logits only. (The same paper's L2 penalty on the last layer's weights is the
    optimizer's weight decay.)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      beta: in [0, inf).
      where: bool[..., K], the classes that exist. A logit of -inf has no finite square.

    Returns:
      float32[...], at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or beta outside
        its range.

    Source: Kornblith et al., 2021, "Why do better loss functions lead to less transferable
    features?", https://arxiv.org/abs/2010.16402

    >>> print(f"{logit_penalty([3.0, 4.0], 1, beta=0.1):.4f}")  # log(1 + 1/e) + 2.5
    2.8133
    """
    beta = _labels.in_range("beta", beta, "[0, inf)")
    logits, labels = _labels.check(logits, labels)
    z, masked, _ = _existing(logits, where)
    return cross_entropy(masked, labels) + beta * jnp.sum(z**2, -1)


def _existing(
    logits: jax.Array, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | int]:
    """Mask the classes that do not exist, once with 0 and once with -inf, and count the others."""
    if where is None:
        return logits, logits, logits.shape[-1]
    where = jnp.broadcast_to(jnp.asarray(where), logits.shape)
    count = jnp.sum(where, -1).astype(logits.dtype)
    return jnp.where(where, logits, 0), jnp.where(where, logits, -jnp.inf), count


def _of_the_others(z: jax.Array, q: jax.Array) -> jax.Array:
    """Compute sum_k q_k sum_{j != k} z_j^2 without subtracting squares: z_y^2 never enters where q
    is one-hot.
    """
    return jnp.sum((jnp.sum(q, -1, keepdims=True) - q) * z**2, -1)
