"""Losses that know how many training examples each class has. The experiment scripts fill the
counts in.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from cnnlab.losses import _labels
from cnnlab.losses._likelihood import log_probability
from cnnlab.losses.entropy import cross_entropy
from cnnlab.losses.margin import made_for_cosines


@made_for_cosines
def ldam(
    logits: ArrayLike,
    labels: ArrayLike,
    class_counts: ArrayLike,
    max_margin: float = 0.5,
    scale: float = 30.0,
) -> jax.Array:
    """Cross-entropy with a margin that is wider for rarer classes: label-distribution-aware
    margins.

        L(z, y) = -log softmax(scale (z - m_y e_y))_y,  m_k = max_margin (min_j n_j / n_k)^(1/4)

    Args:
      logits: float[..., K]; cosines in the paper, and so by default in cnnlab's models.
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      class_counts: K positive numbers n_k of training examples.
      max_margin: in [0, inf), of the rarest class, in units of the logits.
      scale: in (0, inf), the inverse temperature.

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or a number
        outside its range.

    Source: Cao et al., 2019, "Learning imbalanced datasets with label-distribution-aware margin
    loss", https://arxiv.org/abs/1906.07413

    >>> print(f"{ldam([0.5, 0.0], 1, class_counts=[16, 1]):.4f}")  # 30 (0.5 + 0.5)
    30.0000
    """
    max_margin = _labels.in_range("max_margin", max_margin, "[0, inf)")
    scale = _labels.in_range("scale", scale, "(0, inf)")
    logits, labels = _labels.check(logits, labels)
    counts = _labels.per_class("class_counts", class_counts, logits.shape[-1], logits.dtype)
    margins = max_margin * (jnp.min(counts) / counts) ** 0.25

    def of_id(z: jax.Array, y: jax.Array) -> jax.Array:
        is_label = _labels.is_label(y, z.shape[-1])
        return -log_probability(
            scale * (z - jnp.where(is_label, jnp.broadcast_to(margins, z.shape), 0)), y
        )

    return _labels.by_class(of_id, logits, labels)


def logit_adjusted(
    logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, tau: float = 1.0
) -> jax.Array:
    """Cross-entropy of logits to which the classes' frequencies are added: the network learns what
    is left.

        L(z, y) = -log softmax(z + tau log(n / sum n))_y

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      class_counts: K positive numbers n_k of training examples.
      tau: in [0, inf); 1 makes the argmax of z minimise the balanced error.

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or a number
        outside its range.

    Source: Menon et al., 2021, "Long-tail learning via logit adjustment",
    https://arxiv.org/abs/2007.07314

    >>> print(f"{logit_adjusted([0.0, 0.0], 1, class_counts=[3, 1]):.4f}")  # log 4
    1.3863
    """
    tau = _labels.in_range("tau", tau, "[0, inf)")
    logits, labels = _labels.check(logits, labels)
    counts = _labels.per_class("class_counts", class_counts, logits.shape[-1], logits.dtype)
    log_prior = jnp.log(counts / jnp.sum(counts))
    return cross_entropy(logits + jnp.broadcast_to(tau * log_prior, logits.shape), labels)


def balanced_softmax(logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike) -> jax.Array:
    """Cross-entropy of a softmax weighted with the classes' frequencies: logit_adjusted with tau =
    1.

        L(z, y) = -log(n_y exp z_y / sum_k n_k exp z_k)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      class_counts: K positive numbers n_k of training examples.

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or counts that are
        not positive.

    Source: Ren et al., 2020, "Balanced meta-softmax for long-tailed visual recognition",
    https://arxiv.org/abs/2007.10740

    >>> print(f"{balanced_softmax([0.0, 0.0], 1, class_counts=[3, 1]):.4f}")  # log 4
    1.3863
    """
    return logit_adjusted(logits, labels, class_counts)


def effective_number(class_counts: ArrayLike, beta: float = 0.9999) -> np.ndarray | jax.Array:
    """Compute weights for `class_weights`: the inverse of how many different examples a class
    really has.

        w_k = (1 - beta) / (1 - beta^n_k), scaled to mean 1

    Args:
      class_counts: K positive numbers n_k of training examples.
      beta: in [0, 1); 0 gives equal weights, towards 1 they become proportional to 1 / n_k.

    Returns:
      float64[K], summing to K; of traced counts float32[K].

    Raises:
      ValueError: counts that are not positive, or beta outside its range.

    Source: Cui et al., 2019, "Class-balanced loss based on effective number of samples",
    https://arxiv.org/abs/1901.05555

    >>> print(effective_number([100, 1], beta=0.5).round(4))
    [0.6667 1.3333]
    """
    beta = _labels.in_range("beta", beta, "[0, 1)")
    traced = isinstance(class_counts, Tracer)
    xp = jnp if traced else np
    counts = xp.asarray(class_counts, float)
    if counts.ndim != 1 or (not traced and not np.all((counts > 0) & np.isfinite(counts))):
        raise ValueError(f"class_counts must all be positive and finite, got {class_counts}")
    # beta^n by its logarithm: 1 - beta^n cancels for beta near 1
    weights = (1 - beta) / -xp.expm1(counts * math.log(beta)) if beta else xp.ones_like(counts)
    return weights * len(counts) / weights.sum()
