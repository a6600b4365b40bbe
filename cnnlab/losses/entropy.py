"""Losses that read the logarithm of a probability."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnnlab.losses import _labels
from cnnlab.losses._likelihood import focal_term, focused, of_log_probability
from cnnlab.softmax import log_sigmoid, sigmoid


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Surprise at the true class under the softmax probabilities.

        L(z, y) = -log p_y;  for a distribution q: -sum_k q_k log p_k

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions.

    Returns:
      float32[...], in nats, at least 0; for ids to a few ulp also near 0; NaN for an id outside [0,
      K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, or a visible id outside [0, K).

    Source: Good, 1952, "Rational decisions", J. R. Stat. Soc. B 14,
    https://doi.org/10.1111/j.2517-6161.1952.tb00104.x

    >>> import jax.numpy as jnp
    >>> print(f"{cross_entropy(jnp.log(jnp.array([0.7, 0.2, 0.1])), 0):.4f}")
    0.3567
    """
    return of_log_probability(jnp.negative, logits, labels)


def binary_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, target_threshold: float | None = None
) -> jax.Array:
    """One yes/no question per class, each answered by a sigmoid.

        L(z, y) = -log s(z_y) - sum_{j != y} log s(-z_j),  s = sigmoid;
        for targets t: -sum_k (t_k log s(z_k) + (1 - t_k) log s(-z_k))

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] independent targets in [0, 1], which need not sum
        to 1.
      target_threshold: in [0, 1) or None; targets above it count as 1, the others as 0 (for mixed
        images).

    Returns:
      float32[...], the sum over the classes, in nats, at least 0; NaN for an id outside [0, K)
      under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or a threshold
        outside [0, 1).

    Source: Cox, 1958, "The regression analysis of binary sequences", J. R. Stat. Soc. B 20,
    https://doi.org/10.1111/j.2517-6161.1958.tb00292.x; for exclusive classes, with the threshold:
    Wightman et al., 2021, "ResNet strikes back", https://arxiv.org/abs/2110.00476

    >>> print(f"{binary_cross_entropy([0.0, 0.0], 1):.4f}")
    1.3863
    """
    if target_threshold is not None:
        target_threshold = _labels.in_range("target_threshold", target_threshold, "[0, 1)")
    logits, labels = _labels.check(logits, labels)
    if _labels.is_ids(labels):
        signed = jnp.where(_labels.is_label(labels, logits.shape[-1]), logits, -logits)
        return _labels.poison(-jnp.sum(log_sigmoid(signed), -1), labels, logits.shape[-1])
    if target_threshold is not None:
        labels = (labels > target_threshold).astype(labels.dtype)
    # max(z, 0) - t z + log(1 + exp(-|z|)), its two kinks at 0 on one side of it, where they cancel
    up = logits > 0
    linear = jnp.where(up, logits, 0) - labels * _labels.bounded(logits, labels)
    return jnp.sum(linear - log_sigmoid(jnp.where(up, logits, -logits)), -1)


def focal(logits: ArrayLike, labels: ArrayLike, gamma: float = 2.0) -> jax.Array:
    """Cross-entropy that looks away from what is already classified well.

        L(z, y) = -(1 - p_y)^gamma log p_y

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      gamma: in [0, inf); 0 is cross-entropy.

    Returns:
      float32[...], in nats, at least 0; exactly 0 where 1 - p_y < 1e-12; NaN for an id outside [0,
      K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or gamma outside
        its range.

    Source: Lin et al., 2017, "Focal loss for dense object detection",
    https://arxiv.org/abs/1708.02002 (softmax form)

    >>> import jax.numpy as jnp
    >>> print(f"{focal(jnp.log(jnp.array([0.5, 0.5])), 0):.4f}")  # 0.25 log 2
    0.1733
    """
    gamma = _labels.in_range("gamma", gamma, "[0, inf)")
    return of_log_probability(lambda log_p: focal_term(log_p, gamma), logits, labels)


def poly(logits: ArrayLike, labels: ArrayLike, epsilon: float = 1.0) -> jax.Array:
    """Cross-entropy with the weight of the first term of its series in 1 - p changed: poly-1.

        L(z, y) = -log p_y + epsilon (1 - p_y)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      epsilon: in [-1, inf); -1 takes that term away, 0 is cross-entropy (Optax's default is 2).

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or epsilon outside
        its range.

    Source: Leng et al., 2022, "PolyLoss", https://arxiv.org/abs/2204.12511

    >>> import jax.numpy as jnp
    >>> print(f"{poly(jnp.log(jnp.array([0.5, 0.5])), 0):.4f}")  # log 2 + 0.5
    1.1931
    """
    epsilon = _labels.in_range("epsilon", epsilon, "[-1, inf)")
    return of_log_probability(lambda log_p: -log_p - epsilon * jnp.expm1(log_p), logits, labels)


def asymmetric(
    logits: ArrayLike,
    labels: ArrayLike,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
) -> jax.Array:
    """Binary cross-entropy that focuses more on the classes that are absent than on those that are
    there.

        L(z, y) = -(1 - s_y)^gamma_pos log s_y - sum_{j != y} n_j^gamma_neg log(1 - n_j),
        s = sigmoid(z),  n = max(0, s - clip)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] independent targets t in [0, 1]: t_k and 1 - t_k
        weigh the two terms.
      gamma_pos: in [0, inf), focusing of the classes that are there.
      gamma_neg: in [0, inf), focusing of the absent ones.
      clip: in [0, 1), the probability below which an absent class costs nothing.

    Returns:
      float32[...], the sum over the classes, in nats, at least 0; NaN for an id outside [0, K)
      under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or a number
        outside its range.

    Source: Ridnik et al., 2021, "Asymmetric loss for multi-label classification",
    https://arxiv.org/abs/2009.14119 (the authors' code detaches the focusing factors unless asked
    not to; here the gradient is the formula's)

    >>> print(f"{asymmetric([0.0, 0.0], 0):.4f}")  # 0.5 log 2 - 0.45^4 log 0.55
    0.3711
    """
    gamma_pos = _labels.in_range("gamma_pos", gamma_pos, "[0, inf)")
    gamma_neg = _labels.in_range("gamma_neg", gamma_neg, "[0, inf)")
    clip = _labels.in_range("clip", clip, "[0, 1)")
    logits, labels = _labels.check(logits, labels)
    excess = jnp.maximum(sigmoid(logits) - clip, 0)
    # log(1 - n): accurate near 0 without a clip; with one, n stays away from 1
    rest = -log_sigmoid(-logits) if isinstance(clip, float) and clip == 0 else -jnp.log1p(-excess)
    absent = focused(excess, rest, gamma_neg)
    if _labels.is_ids(labels):
        classes = logits.shape[-1]
        present = focal_term(log_sigmoid(_labels.pick(logits, labels)), gamma_pos)
        others = jnp.where(_labels.is_label(labels, classes), 0, absent)
        return _labels.poison(present + jnp.sum(others, -1), labels, classes)
    present = focal_term(_labels.bounded(log_sigmoid(logits), labels), gamma_pos)
    return jnp.sum(labels * present + (1 - labels) * _labels.bounded(absent, 1 - labels), -1)
