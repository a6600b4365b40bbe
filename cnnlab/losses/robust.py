"""Losses made for labels that are sometimes wrong: bounded ones, symmetric ones, and their sums
with cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cnnlab.errors import unknown
from cnnlab.losses import _labels
from cnnlab.losses._likelihood import of_log_probability
from cnnlab.losses.entropy import cross_entropy, focal
from cnnlab.softmax import as_float, log_softmax, log_tempered_softmax, softmax


def mean_absolute_error(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Absolute distance between the softmax probabilities and the target.

        L(z, y) = sum_k |p_k - e_k| = 2 (1 - p_y);  for a distribution q: sum_k |p_k - q_k|

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions.

    Returns:
      float32[...], in [0, 2] (no unit); NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, or a visible id outside [0, K).

    Source: Ghosh, Kumar & Sastry, 2017, "Robust loss functions under label noise for deep neural
    networks", https://arxiv.org/abs/1712.09482

    >>> import jax.numpy as jnp
    >>> print(mean_absolute_error(jnp.zeros(4), 1))
    1.5
    """
    logits, labels = _labels.check(logits, labels)
    if _labels.is_ids(labels):
        return of_log_probability(lambda log_p: -2 * jnp.expm1(log_p), logits, labels)
    return jnp.sum(jnp.abs(softmax(logits) - labels), -1)


def generalized_cross_entropy(logits: ArrayLike, labels: ArrayLike, q: float = 0.7) -> jax.Array:
    """Between cross-entropy (q towards 0) and mean absolute error (q = 1, which is half of it): a
    Box-Cox transform.

        L(z, y) = (1 - p_y^q) / q

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      q: in (0, 1].

    Returns:
      float32[...], in [0, 1 / q]; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or q outside its
        range.

    Source: Zhang & Sabuncu, 2018, "Generalized cross entropy loss for training deep neural networks
    with noisy labels", https://arxiv.org/abs/1805.07836

    >>> import jax.numpy as jnp
    >>> print(generalized_cross_entropy(jnp.zeros(4), 1, q=0.5))  # 2 (1 - sqrt(1/4))
    1.0
    """
    q = _labels.in_range("q", q, "(0, 1]")
    return of_log_probability(lambda log_p: -jnp.expm1(q * log_p) / q, logits, labels)


def reverse_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, log_zero: float = -4.0
) -> jax.Array:
    """Cross-entropy with prediction and label exchanged, log 0 being a constant.

        L(z, y) = -log_zero (1 - p_y)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      log_zero: in (-inf, 0), what stands for log 0.

    Returns:
      float32[...], in [0, -log_zero]; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or log_zero
        outside its range.

    Source: Wang et al., 2019, "Symmetric cross entropy for robust learning with noisy labels",
    https://arxiv.org/abs/1908.06112

    >>> import jax.numpy as jnp
    >>> print(reverse_cross_entropy(jnp.zeros(4), 1))
    3.0
    """
    log_zero = _labels.in_range("log_zero", log_zero, "(-inf, 0)")
    return of_log_probability(lambda log_p: log_zero * jnp.expm1(log_p), logits, labels)


def symmetric_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
) -> jax.Array:
    """Cross-entropy, which fits, plus reverse cross-entropy, which does not mind wrong labels.

        L(z, y) = -alpha log p_y - beta log_zero (1 - p_y)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      alpha: in [0, inf), weight of cross-entropy.
      beta: in [0, inf), weight of reverse cross-entropy.
      log_zero: in (-inf, 0), what stands for log 0.

    Returns:
      float32[...], at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or a number
        outside its range.

    Source: Wang et al., 2019, "Symmetric cross entropy for robust learning with noisy labels",
    https://arxiv.org/abs/1908.06112

    >>> import jax.numpy as jnp
    >>> print(f"{symmetric_cross_entropy(jnp.zeros(4), 1):.4f}")  # 0.1 log 4 + 3
    3.1386
    """
    alpha = _labels.in_range("alpha", alpha, "[0, inf)")
    beta = _labels.in_range("beta", beta, "[0, inf)")
    log_zero = _labels.in_range("log_zero", log_zero, "(-inf, 0)")

    def term(log_p):
        return -alpha * log_p + beta * log_zero * jnp.expm1(log_p)

    return of_log_probability(term, logits, labels)


def normalized_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The true class's share of the cross-entropies of all classes, which makes them sum to one.

        L(z, y) = log p_y / sum_k log p_k

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).

    Returns:
      float32[...], in [0, 1]; 0 next to an impossible class. NaN for an id outside [0, K) under
      jit, for a single class, and where the true class is the impossible one.

    Raises:
      ValueError: labels that do not fit the logits, or a visible id outside [0, K).

    Source: Ma et al., 2020, "Normalized loss functions for deep learning with noisy labels",
    https://arxiv.org/abs/2006.13554

    >>> import jax.numpy as jnp
    >>> print(normalized_cross_entropy(jnp.zeros(4), 1))
    0.25
    """
    logits, labels = _labels.check(logits, labels)
    z = logits - lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    total = jnp.sum(z, -1) - z.shape[-1] * jnp.log(jnp.sum(jnp.exp(z), -1))  # sum_k log p_k
    return of_log_probability(jnp.negative, logits, labels) / -total


def normalized_focal(logits: ArrayLike, labels: ArrayLike, gamma: float = 0.5) -> jax.Array:
    """The true class's share of the focal losses of all classes.

        L(z, y) = F_y / sum_k F_k,  F_k = -(1 - p_k)^gamma log p_k

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      gamma: in [0, inf); 0 is normalized cross-entropy.

    Returns:
      float32[...], in [0, 1]; 0 next to an impossible class. NaN for an id outside [0, K) under
      jit, for a single class, and where the true class is the impossible one.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or gamma outside
        its range.

    Source: Ma et al., 2020, "Normalized loss functions for deep learning with noisy labels",
    https://arxiv.org/abs/2006.13554 (the authors' code detaches p_y, so that its gradient is
    another)

    >>> import jax.numpy as jnp
    >>> print(normalized_focal(jnp.zeros(4), 1))
    0.25
    """
    gamma = _labels.in_range("gamma", gamma, "[0, inf)")
    logits, labels = _labels.check(logits, labels)
    total = _fixed_total if isinstance(gamma, float) else _total_focal
    return focal(logits, labels, gamma) / total(logits, gamma)


def _total_focal(logits: jax.Array, gamma: float | jax.Array) -> jax.Array:
    """Compute sum_k F_k, or inf next to an impossible class."""
    log_p, _, miss = _all_classes(logits)
    total = -jnp.sum(miss**gamma * log_p, -1)
    return jnp.where(total > jnp.finfo(total.dtype).max / 4, jnp.inf, total)


# Autodiff would take miss^(gamma - 1): XLA on a CPU is slow at powers other than square roots.
@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _fixed_total(logits: jax.Array, gamma: float) -> jax.Array:
    return _total_focal(logits, gamma)


@_fixed_total.defjvp
def _(gamma, primals, tangents):
    (logits,), (slope,) = primals, tangents
    log_p, p, miss = _all_classes(logits)
    by_log_p = miss**gamma * (gamma * p * log_p / miss - 1)
    by_logit = by_log_p - p * jnp.sum(by_log_p, -1, keepdims=True)
    total = _fixed_total(logits, gamma)  # pyright: ignore[reportCallIssue]
    return total, jnp.sum(by_logit * slope, -1)


def _all_classes(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute log p, p and 1 - p of every class, all finite."""
    limits = jnp.finfo(logits.dtype)
    z = jnp.where(logits == -jnp.inf, float(limits.min) / 2, logits)
    top = lax.stop_gradient(jnp.max(z, -1, keepdims=True))
    z = z - jnp.where(jnp.isfinite(top), top, 0)  # keeps XLA from storing the difference
    shares = jnp.exp(z)
    total = jnp.sum(shares, -1, keepdims=True)
    p = shares * (1 / total)
    # The class that is near 1 adds next to nothing to the sum: 1 - p may be off by an ulp of 1, and
    # so is never 0, where its power would have no slope.
    miss = 1 + float(limits.eps) - p
    return z - jnp.log(total), p, miss


def active_passive(
    logits: ArrayLike,
    labels: ArrayLike,
    alpha: float = 1.0,
    beta: float = 1.0,
    active: str | Callable = "normalized_cross_entropy",
    passive: str | Callable = "reverse_cross_entropy",
) -> jax.Array:
    """A loss that raises the true class's probability plus one that lowers the others'.

        L(z, y) = alpha A(z, y) + beta P(z, y)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions, as the two losses take
        them.
      alpha: in [0, inf), weight of the active loss.
      beta: in [0, inf), weight of the passive loss.
      active: A: cross_entropy, focal, normalized_cross_entropy, normalized_focal, or a function.
      passive: P: mean_absolute_error, reverse_cross_entropy, or a function.

    Returns:
      float32[...]; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), a number outside
        its range, or a
    name that is none of those above.

    Source: Ma et al., 2020, "Normalized loss functions for deep learning with noisy labels",
    https://arxiv.org/abs/2006.13554

    >>> import jax.numpy as jnp
    >>> print(active_passive(jnp.zeros(4), 1))  # 1/4 + 3
    3.25
    """
    alpha = _labels.in_range("alpha", alpha, "[0, inf)")
    beta = _labels.in_range("beta", beta, "[0, inf)")
    first, second = _member("active", active, ACTIVE), _member("passive", passive, PASSIVE)
    logits = as_float(logits)  # so that their gradients are added in float32
    return alpha * first(logits, labels) + beta * second(logits, labels)


def _member(role: str, loss: str | Callable, known: dict[str, Callable]) -> Callable:
    if callable(loss):
        return loss
    name = SHORT_MEMBERS.get(loss, loss)
    if name not in known:
        raise unknown(f"{role} loss", str(loss), known)
    return known[name]


# Words for the same losses, which are counted as those.
SHORT_MEMBERS = {"ce": "cross_entropy", "nce": "normalized_cross_entropy"}
SHORT_MEMBERS |= {"nfl": "normalized_focal", "mae": "mean_absolute_error"}
SHORT_MEMBERS |= {"rce": "reverse_cross_entropy"}
vars(active_passive)["short_words"] = SHORT_MEMBERS

ACTIVE = {f.__name__: f for f in (cross_entropy, focal, normalized_cross_entropy, normalized_focal)}
PASSIVE = {f.__name__: f for f in (mean_absolute_error, reverse_cross_entropy)}


def bi_tempered(
    logits: ArrayLike, labels: ArrayLike, t1: float = 0.8, t2: float = 1.2
) -> jax.Array:
    """Cross-entropy with a bounded logarithm (t1 < 1) and a heavy-tailed softmax (t2 > 1).

        L(z, y) = -log_t1 p_y - (1 - sum_k p_k^(2-t1)) / (2-t1),
        p = tempered_softmax(z, t2),  log_t x = (x^(1-t) - 1) / (1-t);
        for targets q: sum_k q_k (log_t1 q_k - log_t1 p_k) - (q_k^(2-t1) - p_k^(2-t1)) / (2-t1)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions.
      t1: in [0, 2); below 1 the loss is bounded by 1 / (1 - t1) plus a constant; 1 takes the
        logarithm.
      t2: in (0, 10]; above 1 the tails are heavier than softmax's, below 1 lighter; 1 is softmax.

    Returns:
      float32[...], at least 0; NaN for an id outside [0, K) under jit. (1, 1) is cross-entropy,
      less q's entropy.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or t1 or t2
        outside its range.

    Source: Amid et al., 2019, "Robust bi-tempered logistic loss based on Bregman divergences",
    https://arxiv.org/abs/1906.03361

    >>> import jax.numpy as jnp
    >>> print(f"{bi_tempered(jnp.zeros(4), 1):.4f}")  # 5 (1 - 4^-0.2) - (1 - 4^-0.2) / 1.2
    1.0089
    """
    t1, t2 = _labels.in_range("t1", t1, "[0, 2)"), _labels.in_range("t2", t2, "(0, 10]")
    logits, labels = _labels.check(logits, labels)
    log_p = log_softmax(logits) if t2 == 1 else log_tempered_softmax(logits, t2)
    power = jnp.sum(jnp.exp((2 - t1) * log_p), -1)
    if _labels.is_ids(labels):
        log_p_y = _labels.poison(_labels.pick(log_p, labels), labels, logits.shape[-1])
        return -_tempered_log(log_p_y, t1) - (1 - power) / (2 - t1)
    log_t_p = _labels.bounded(_tempered_log(log_p, t1), labels)
    return jnp.sum(_negative_entropy(labels, t1) - labels * log_t_p, -1) + power / (2 - t1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _negative_entropy(q: jax.Array, t: float) -> jax.Array:
    """Compute q log_t q - q^(2-t) / (2-t); its slope is log_t q."""
    log_q = _log(q)
    return q * _labels.bounded(_tempered_log(log_q, t), q) - jnp.exp((2 - t) * log_q) / (2 - t)


@_negative_entropy.defjvp
def _(t, primals, tangents):
    (q,), (dq,) = primals, tangents
    slope = _labels.bounded(_tempered_log(_log(q), t), q)
    return _negative_entropy(q, t), slope * dq  # pyright: ignore[reportCallIssue]


def _log(x: jax.Array) -> jax.Array:
    """Compute log x; at 0 it is -inf, without a slope."""
    return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.where(x == 0, 1, x)))


def _tempered_log(log_x: jax.Array, t: float) -> jax.Array:
    """Compute (x^(1-t) - 1) / (1-t) from log x, or log x for t = 1."""
    return log_x if t == 1 else jnp.expm1((1 - t) * log_x) / (1 - t)
