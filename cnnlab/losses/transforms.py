"""Functions from losses to losses: what changes any of them in the same way. Hyperparameters pass
through.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnnlab.errors import unknown
from cnnlab.losses import _labels
from cnnlab.losses.imbalance import effective_number
from cnnlab.softmax import as_float

Loss = Callable[..., jax.Array]
CONVENTIONS = ("uniform", "off_target")


def label_smoothing(loss: Loss, alpha: float = 0.1, convention: str = "uniform") -> Loss:
    """A loss whose labels give a share of themselves away.

        loss(z, q'),  uniform: q' = (1 - alpha) q + alpha / K;
        off_target: q' = (1 - alpha) q + alpha (1 - q) / (K - 1)

    uniform is the convention of the paper, PyTorch, Keras, Optax and timm; off_target, which leaves
    the true class exactly 1 - alpha, that of T5X and Big Vision.

    Args:
      loss: (logits, labels, **hyperparameters) -> float32[...]; it will meet distributions.
      alpha: in [0, 1].
      convention: uniform or off_target.

    Returns:
      A loss.

    Raises:
      ValueError: alpha outside its range, or another convention.

    Source: Szegedy et al., 2016, "Rethinking the Inception architecture for computer vision",
    https://arxiv.org/abs/1512.00567

    >>> import jax.numpy as jnp
    >>> from cnnlab.losses import cross_entropy
    >>> print(f"{label_smoothing(cross_entropy, 0.2)(jnp.log(jnp.array([0.5, 0.5])), 0):.4f}")
    0.6931
    """
    alpha = _labels.in_range("alpha", alpha, "[0, 1]")
    if convention not in CONVENTIONS:
        raise unknown("smoothing convention", str(convention), CONVENTIONS)

    def smoothed(logits: ArrayLike, labels: ArrayLike, **hyper: object) -> jax.Array:
        logits, labels = _labels.check(logits, labels)
        classes = logits.shape[-1]
        q = _labels.distribution(labels, classes, logits.dtype)
        others = (
            jnp.full_like(q, 1 / classes) if convention == "uniform" else (1 - q) / (classes - 1)
        )
        return _labels.poison(
            loss(logits, (1 - alpha) * q + alpha * others, **hyper), labels, classes
        )

    return smoothed


def temperature(loss: Loss, t: float) -> Loss:
    """A loss of softened (t > 1) or sharpened (t < 1) logits.

        loss(z / t, y)

    Args:
      loss: (logits, labels, **hyperparameters) -> float32[...].
      t: in (0, inf).

    Returns:
      A loss.

    Raises:
      ValueError: t outside its range.

    Source: Guo et al., 2017, "On calibration of modern neural networks",
    https://arxiv.org/abs/1706.04599

    >>> from cnnlab.losses import cross_entropy
    >>> print(temperature(cross_entropy, 2.0)([2.0, 0.0], 0) == cross_entropy([1.0, 0.0], 0))
    True
    """
    t = _labels.in_range("t", t, "(0, inf)")
    return lambda logits, labels, **hyper: loss(as_float(logits) / t, labels, **hyper)


def class_weights(loss: Loss, weights: ArrayLike) -> Loss:
    """A loss in which each class counts as much as it is given.

        w_y loss(z, y);  for a distribution q: sum_k q_k w_k loss(z, k)

    The weights are not divided by their sum over the batch, as torch.nn.CrossEntropyLoss does: the
    caller averages.

    Args:
      loss: (logits, labels, **hyperparameters) -> float32[...].
      weights: K positive numbers, such as `effective_number` gives.

    Returns:
      A loss. A distribution costs it K evaluations.

    Raises:
      ValueError: (when called) not one positive number for each class.

    Source: King & Zeng, 2001, "Logistic regression in rare events data", Political Analysis 9.

    >>> from cnnlab.losses import cross_entropy
    >>> print(f"{class_weights(cross_entropy, [1.0, 3.0])([0.0, 0.0], 1):.4f}")  # 3 log 2
    2.0794
    """

    def weighted(logits: ArrayLike, labels: ArrayLike, **hyper: object) -> jax.Array:
        logits = as_float(logits)
        factors = _labels.per_class("weights", weights, logits.shape[-1], logits.dtype)
        return _labels.by_class(lambda z, y: loss(z, y, **hyper), logits, labels, factors)

    return weighted


def class_balanced(loss: Loss, class_counts: ArrayLike, beta: float = 0.9999) -> Loss:
    """A loss in which each class counts as much as the effective number of its images says: rare
    ones more.

        w_y loss(z, y),  w_k = (1 - beta) / (1 - beta^n_k), scaled to a mean of 1

    Args:
      loss: (logits, labels, **hyperparameters) -> float32[...].
      class_counts: K positive numbers n_k of training examples.
      beta: in [0, 1).

    Returns:
      A loss, as `class_weights` makes it of `effective_number`.

    Raises:
      ValueError: beta outside its range, or counts that are not positive.

    Source: Cui et al., 2019, "Class-balanced loss based on effective number of samples",
    https://arxiv.org/abs/1901.05555

    >>> from cnnlab.losses import cross_entropy
    >>> print(f"{class_balanced(cross_entropy, [1.0, 3.0], beta=0.0)([0.0, 0.0], 1):.4f}")  # log 2
    0.6931
    """
    return class_weights(loss, effective_number(class_counts, beta))


def with_z_loss(loss: Loss, coefficient: float = 1e-4) -> Loss:
    """A loss plus a pull on the logits' normaliser towards 0, which keeps large networks stable.

        loss(z, y) + coefficient (log sum_k exp z_k)^2

    Args:
      loss: (logits, labels, **hyperparameters) -> float32[...].
      coefficient: in [0, inf).

    Returns:
      A loss.

    Raises:
      ValueError: coefficient outside its range.

    Source: Zoph et al., 2022, "ST-MoE", https://arxiv.org/abs/2202.08906; Chowdhery et al., 2022,
    "PaLM", https://arxiv.org/abs/2204.02311

    >>> from cnnlab.losses import cross_entropy
    >>> print(f"{with_z_loss(cross_entropy, 1.0)([0.0, 0.0], 0):.4f}")  # log 2 + (log 2)^2
    1.1736
    """
    coefficient = _labels.in_range("coefficient", coefficient, "[0, inf)")

    def pulled(logits: ArrayLike, labels: ArrayLike, **hyper: object) -> jax.Array:
        logits = as_float(logits)  # so that the two gradients are added in float32
        normaliser = jax.scipy.special.logsumexp(logits, axis=-1)
        return loss(logits, labels, **hyper) + coefficient * normaliser**2

    return pulled


def weighted_sum(losses: Mapping[Loss, float]) -> Loss:
    """Combine several losses into their weighted sum.

        sum_i w_i loss_i(z, y)

    Args:
      losses: each loss (logits, labels) -> float32[...] with its weight, a finite number.

    Returns:
      A loss.

    Raises:
      ValueError: no loss, or a weight that is not finite.

    Source: linearity.

    >>> from cnnlab.losses import cross_entropy, mean_squared_error
    >>> loss = weighted_sum({cross_entropy: 1.0, mean_squared_error: 2.0})
    >>> print(f"{loss([0.0, 0.0], 0):.4f}")  # log 2 + 2/2
    1.6931
    """
    if not losses:
        raise ValueError("weighted_sum needs at least one loss")
    parts = [
        (loss, _labels.in_range("weight", weight, "(-inf, inf)")) for loss, weight in losses.items()
    ]

    def summed(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
        logits = as_float(logits)  # so that the gradients are added in float32
        return functools.reduce(
            operator.add, [weight * loss(logits, labels) for loss, weight in parts]
        )

    return summed
