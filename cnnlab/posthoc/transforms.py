"""Transforms of stored logits: temperature, logit adjustment.

A transform is `(logits float[N, K], *, ...) -> float64[N, K]`, a pure function. By parameter name
it may ask for `validation_logits`, `validation_labels` and `class_counts`. TRANSFORMS are all of
them by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import root_scalar

from cnnlab.posthoc import _logits

LOWEST_TEMPERATURE = 1e-3
HIGHEST_TEMPERATURE = 1e3


def temperature(
    logits: ArrayLike, *, validation_logits: ArrayLike, validation_labels: ArrayLike
) -> np.ndarray:
    """Divide the logits by the temperature that suits the validation split best.

        z / T,  T = argmin_T mean_i -log softmax(z_i / T)_y,  over validation images i

    Args:
      logits: float[N, K].
      validation_logits: float[V, K], of the same network.
      validation_labels: int[V] class ids.

    Returns:
      float64[N, K]; NaN if a validation logit is not finite.

    Raises:
      ValueError: no validation images, shapes that do not fit, or a label outside [0, K).

    Source: Guo et al., 2017, "On calibration of modern neural networks",
    https://arxiv.org/abs/1706.04599
    """
    scores = _logits.check_logits(logits)
    if not np.size(validation_labels):
        raise ValueError(
            "temperature is chosen on validation images, and there are none: train with a "
            "validation split"
        )
    validation = _logits.check_logits(validation_logits, "validation_logits")
    if validation.shape[1] != scores.shape[1]:
        raise ValueError(
            f"validation_logits must have the {scores.shape[1]} classes of logits, got "
            f"{validation.shape[1]}"
        )
    return scores / fit_temperature(validation, validation_labels)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Find the temperature that minimises the negative log-likelihood.

        sum_i sum_k softmax(z_i / T)_k (z_ik - z_iy) = 0

    The left side is the derivative by 1 / T, which grows with 1 / T: it has one root at most.

    Args:
      logits: float[V, K].
      labels: int[V] class ids.

    Returns:
      T in [1e-3, 1e3], an end of this range where the minimum is not inside: 1e-3 where every image
      is classified right, 1e3 where the logits are no better than equal ones. NaN if a logit is not
      finite.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).

    Source: Guo et al., 2017, "On calibration of modern neural networks",
    https://arxiv.org/abs/1706.04599

    >>> logits = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    >>> print(f"{1 / fit_temperature(logits, [0, 0, 0, 1]):.6f}")  # log 3, the odds
    1.098612
    """
    scores, ids = _logits.check(logits, labels)
    if not np.all(np.isfinite(scores)):
        return math.nan
    margins = scores - _logits.of_labels(scores, ids)[:, None]
    lowest = -math.log(HIGHEST_TEMPERATURE)
    highest = -math.log(LOWEST_TEMPERATURE)
    if _slope(lowest, margins) >= 0:
        return HIGHEST_TEMPERATURE
    if _slope(highest, margins) <= 0:
        return LOWEST_TEMPERATURE
    # As near as float64 can tell: an error of the logarithm is one of T, relative.
    solution = root_scalar(
        _slope,
        args=(margins,),
        method="brentq",
        bracket=(lowest, highest),
        xtol=1e-15,
        rtol=4 * np.spacing(1.0),
    )
    return math.exp(-solution.root)


def _slope(log_inverse: float, margins: np.ndarray) -> float:
    """Compute the derivative of the mean NLL by the inverse temperature.

    Args:
      log_inverse: logarithm of the inverse temperature.
      margins: float64[V, K], logits less that of the right class.
    """
    weights = np.exp(math.exp(log_inverse) * (margins - np.max(margins, 1, keepdims=True)))
    return float(np.mean(np.sum(weights * margins, 1) / np.sum(weights, 1)))


def logit_adjustment(logits: ArrayLike, *, tau: float = 1.0, class_counts: ArrayLike) -> np.ndarray:
    """Subtract the logarithm of the classes' frequencies in training, so that rare classes count.

        z_k - tau log(n_k / sum_j n_j)

    Args:
      logits: float[N, K].
      tau: in [0, inf); 1 makes the argmax minimise the balanced error.
      class_counts: K positive numbers n_k of training images.

    Returns:
      float64[N, K].

    Raises:
      ValueError: another number of classes, or a class without training images.

    Source: Menon et al., 2021, "Long-tail learning via logit adjustment",
    https://arxiv.org/abs/2007.07314
    """
    scores = _logits.check_logits(logits)
    counts = _logits.check_counts(class_counts, scores.shape[1])
    if not np.all(counts):
        raise ValueError(
            f"class {int(np.argmin(counts))} has no training images: its logit has no adjustment"
        )
    return scores - tau * np.log(counts / np.sum(counts))


TRANSFORMS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f for f in (temperature, logit_adjustment)
}
