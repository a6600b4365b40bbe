"""Losses that compare with other logits for the same example: a teacher's, or those of other views
of it.
"""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnnlab.losses import _labels
from cnnlab.losses.entropy import cross_entropy
from cnnlab.softmax import as_float, log_softmax


def distillation(
    logits: ArrayLike,
    labels: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float = 4.0,
    alpha: float = 0.9,
) -> jax.Array:
    """Agreement with a teacher's softened probabilities, and with the label.

        L(z, y) = alpha T^2 sum_k t_k (log t_k - log s_k) - (1 - alpha) log p_y,
        t = softmax(teacher / T),  s = softmax(z / T)

    T^2 keeps the size of the first term's gradient apart from T. The teacher gets no gradient.

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions, for the second term.
      teacher_logits: float[..., K] or what broadcasts to it; `--teacher RUN` fills them in.
      temperature: in (0, inf), T.
      alpha: in [0, 1], weight of the first term.

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit; inf where a class
      is impossible for the student alone.

    Raises:
      ValueError: labels or teacher_logits that do not fit the logits, a visible id outside [0, K),
        or a number outside its range.

    Source: Hinton, Vinyals & Dean, 2015, "Distilling the knowledge in a neural network",
    https://arxiv.org/abs/1503.02531

    >>> print(f"{distillation([0.0, 0.0], 0, teacher_logits=[0.0, 0.0]):.4f}")  # 0.1 log 2
    0.0693
    """
    temperature = _labels.in_range("temperature", temperature, "(0, inf)")
    alpha = _labels.in_range("alpha", alpha, "[0, 1]")
    logits, labels = _labels.check(logits, labels)
    teacher = jax.lax.stop_gradient(_like(teacher_logits, logits.shape, "teacher_logits"))
    teacher, student = (log_softmax(z, temperature=temperature) for z in (teacher, logits))
    divergence = _divergence(teacher, student)
    return alpha * temperature**2 * divergence + (1 - alpha) * cross_entropy(logits, labels)


def jensen_shannon(
    logits: ArrayLike, labels: ArrayLike, view_logits: ArrayLike, weight: float = 12.0
) -> jax.Array:
    """Cross-entropy of an image plus the disagreement of the network about other views of it.

        L(z, y) = -log p_y + weight mean_v KL(p_v || mean_v p_v),  v over the image and its views

    Args:
      logits: float[..., K], of the image itself.
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      view_logits: float[V, ..., K], of V >= 1 augmented views; they get a gradient too.
      weight: in [0, inf), of the divergence.

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels or view_logits that do not fit the logits, a visible id outside [0, K), or
        weight outside its range.

    Source: Hendrycks et al., 2020, "AugMix", https://arxiv.org/abs/1912.02781

    >>> agreeing = [[0.0, 0.0], [0.0, 0.0]]
    >>> print(f"{jensen_shannon([0.0, 0.0], 0, view_logits=agreeing):.4f}")  # log 2
    0.6931
    """
    weight = _labels.in_range("weight", weight, "[0, inf)")
    logits, labels = _labels.check(logits, labels)
    views = as_float(view_logits)
    if views.ndim != logits.ndim + 1 or views.shape[1:] != logits.shape or not len(views):
        raise ValueError(
            f"view_logits must be float[V, ...] over the logits' shape {logits.shape}, got "
            f"{views.shape}"
        )
    every = [log_softmax(view) for view in (logits, *views.astype(logits.dtype))]
    return cross_entropy(logits, labels) + weight * _disagreement(every) / len(every)


def _like(values: ArrayLike, shape: tuple[int, ...], name: str) -> jax.Array:
    values = as_float(values)
    try:
        return jnp.broadcast_to(values, shape)
    except ValueError as error:
        raise ValueError(
            f"{name} must have the logits' shape {shape}, got {values.shape}"
        ) from error


@jax.custom_jvp
def _divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Compute KL(p || q) of distributions: float32[...], at least 0."""
    log_p, log_q = _finite(log_p), _finite(log_q)
    # Where only q is impossible; 0 log 0 = 0 elsewhere
    infinite = jnp.max(log_p - log_q, -1) > jnp.finfo(log_q.dtype).max / 4
    divergence = jnp.sum(_relative(log_p, log_q), -1)
    return jnp.where(infinite, jnp.inf, divergence)


@_divergence.defjvp
def _(primals, tangents):
    log_p, log_q = map(_finite, primals)
    by_log_p = jnp.exp(log_p) * (log_p - log_q)
    change = by_log_p * tangents[0] - _difference(log_p, log_q) * tangents[1]
    return _divergence(*primals), jnp.sum(change, -1)


@jax.custom_jvp
def _disagreement(views: list[jax.Array]) -> jax.Array:
    """Compute sum_v KL(p_v || mean_v p_v) from each view's log p: float32[...], at least 0."""
    views = [_finite(view) for view in views]
    log_mixture = _log_mean(views)
    return jnp.sum(_add([_relative(view, log_mixture) for view in views]), -1)


@_disagreement.defjvp
def _(primals, tangents):
    ((views,), (slopes,)) = primals, tangents
    log_mixture = _log_mean([_finite(view) for view in views])
    # The mixture has no slope: sum_v (mixture - p_v) = 0.
    terms = [
        jnp.exp(view) * (_finite(view) - log_mixture) * slope
        for view, slope in zip(views, slopes, strict=True)
    ]
    return _disagreement(views), jnp.sum(_add(terms), -1)


def _log_mean(views: list[jax.Array]) -> jax.Array:
    """Compute log mean_v p_v from each log p; where all p underflow it is the smallest normal
    number's.
    """
    mean = _add([jnp.exp(view) for view in views]) / len(views)
    return jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny))


def _add(terms: list[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms)


def _finite(log_p: jax.Array) -> jax.Array:
    """Replace log 0 by a number whose product with 0 is 0."""
    return jnp.where(log_p == -jnp.inf, float(jnp.finfo(log_p.dtype).min) / 2, log_p)


def _relative(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Compute p log(p / q) + q - p from finite logarithms: float32[..., K], at least 0.

    Over distributions it sums to KL(p || q). Where p is near q its terms would cancel: a series in
    d = log(p / q) has p (d + exp(-d) - 1) to the last digits.
    """
    d = log_p - log_q
    p = jnp.exp(log_p)
    small = jnp.abs(d) < 0.05
    near = jnp.where(small, d, 0)
    taylor = [(-1) ** n / math.factorial(n + 2) for n in range(7, -1, -1)]
    series = near**2 * jnp.polyval(jnp.array(taylor, d.dtype), near)
    return jnp.where(small, p * series, p * d - _difference(log_p, log_q))


def _difference(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Compute p - q to the last digits also where p is near q: (p + q) tanh(log(p / q) / 2)."""
    return (jnp.exp(log_p) + jnp.exp(log_q)) * jnp.tanh((log_p - log_q) / 2)
