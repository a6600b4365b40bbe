"""Metrics of stored logits: accuracy, likelihood, calibration, selective prediction, rare classes,
wrong labels, out-of-distribution images.

A metric is `(logits float[N, K], labels int[N], *, ...) -> float`, a pure function. By parameter
name it may ask for `class_counts`, `train_losses`, `wrong_labels`, `ood_logits` and what transforms
ask for. METRICS are all of them by name. `shown` states how the values of a metric, your own too,
are written; one without that mark is written as `Shown` of its name.

In the formulas p = softmax(z), an image's confidence is max_k p_k, and it is a hit if its class is
the first of the largest logits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import rankdata

from cnnlab.errors import unknown
from cnnlab.posthoc import _logits

M = TypeVar("M", bound=Callable[..., float])

SHOWN = "shown"  # the attribute that `shown` sets
SCORES = ("max_probability", "energy", "max_logit")
ACCEPTED_PERCENT = 95  # of the in-distribution images, for ood_fpr95


@dataclass(frozen=True)
class Shown:
    """How the values of a metric are written.

    Attributes:
      label: its name for people.
      larger_is_better: the direction.
      factor, unit, digits: values are written times the factor, with so many decimals.
      difference_unit: of differences; None: the same unit.
    """

    label: str
    larger_is_better: bool = False
    factor: float = 1.0
    unit: str = ""
    difference_unit: str | None = None
    digits: int = 4


def shown(record: Shown) -> Callable[[M], M]:
    """Mark a metric, your own too, with how its values are written.

    >>> shown(Shown("error", factor=100, unit="%"))(lambda logits, labels: 0.5).shown.unit
    '%'
    """
    return functools.partial(_marked, record)


def _marked(record: Shown, metric: M) -> M:
    vars(metric)[SHOWN] = record
    return metric


def _percent(label: str, larger_is_better: bool = False) -> Shown:
    return Shown(label, larger_is_better, 100, "%", "pp", 2)


def _hits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return whether each image is classified right: float64[N]; ties go to the first class."""
    return (np.argmax(logits, 1) == labels).astype(np.float64)


def _confidence(logits: np.ndarray) -> np.ndarray:
    """Return the largest probability of each image: float64[N]."""
    return np.max(softmax(logits, axis=1), 1)


def _mean_in_ties(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Replace each value by the mean of those with an equal key."""
    _, group = np.unique(keys, return_inverse=True)
    return (np.bincount(group, values) / np.bincount(group))[group]


def _binned_gap(probability: np.ndarray, outcome: np.ndarray, bins: int) -> float:
    """Compute sum_b |sum of outcomes in b - sum of probabilities in b| / N over bins (lower, upper]
    of equal width.
    """
    place = np.clip(np.ceil(probability * bins).astype(np.int64) - 1, 0, bins - 1)
    return float(np.sum(np.abs(np.bincount(place, outcome - probability))) / len(outcome))


@shown(_percent("accuracy", larger_is_better=True))
def accuracy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Share of images whose class has the largest logit; ties go to the first class.

        1/N sum_i [argmax_k z_ik = y_i]

    Args:
      logits: float[N, K].
      labels: int[N] class ids.

    Returns:
      A share; NaN if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).

    >>> accuracy([[1.0, 0.0], [2.0, 2.0]], [0, 1])
    0.5
    """
    z, y = _logits.check(logits, labels)
    if not _logits.has_softmax(z):
        return math.nan
    return float(np.mean(_hits(z, y)))


@shown(Shown("NLL", unit="nats"))
def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative logarithm of the probability of the right class.

        1/N sum_i -log p_i,y_i

    Args:
      logits: float[N, K].
      labels: int[N] class ids.

    Returns:
      In nats; NaN if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).
    """
    z, y = _logits.check(logits, labels)
    if not _logits.has_softmax(z):
        return math.nan
    # No logarithm is above 0, and the mean of zeros must not be written as -0.
    return float(np.mean(np.abs(_logits.of_labels(log_softmax(z, axis=1), y))))


@shown(Shown("Brier score", unit="0 to 2", difference_unit=""))
def brier(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared distance of the probabilities from the one-hot class.

        1/N sum_i sum_k (p_ik - [k = y_i])^2

    Args:
      logits: float[N, K].
      labels: int[N] class ids.

    Returns:
      In [0, 2]; NaN if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).

    Source: Brier, 1950, "Verification of forecasts expressed in terms of probability"
    """
    z, y = _logits.check(logits, labels)
    if not _logits.has_softmax(z):
        return math.nan
    distance = softmax(z, axis=1) - (np.arange(z.shape[1]) == y[:, None])
    return float(np.mean(np.sum(distance**2, 1)))


@shown(_percent("top-5 accuracy", larger_is_better=True))
def top5(logits: ArrayLike, labels: ArrayLike) -> float:
    """Share of images whose class is among the five largest logits; ties go to the first classes.

        1/N sum_i [fewer than 5 classes come before y_i]

    Args:
      logits: float[N, K].
      labels: int[N] class ids.

    Returns:
      A share; NaN if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).
    """
    z, y = _logits.check(logits, labels)
    if not _logits.has_softmax(z):
        return math.nan
    z_y = _logits.of_labels(z, y)[:, None]
    is_earlier = np.arange(z.shape[1]) < y[:, None]
    num_before = np.sum((z > z_y) | ((z == z_y) & is_earlier), 1)
    return float(np.mean(num_before < 5))


@shown(_percent("ECE"))
def ece(logits: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error: accuracy less confidence, over equal bins of confidence.

        sum_b n_b / N |accuracy in b - mean confidence in b|,  bins (lower, upper]

    Args:
      logits: float[N, K].
      labels: int[N] class ids.
      bins: in [1, inf), their number; all have the same width.

    Returns:
      In [0, 1]; NaN if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).

    Source: Naeini et al., 2015, "Obtaining well calibrated probabilities using Bayesian binning";
    Guo et al., 2017, https://arxiv.org/abs/1706.04599
    """
    z, y = _logits.check(logits, labels)
    if not _logits.has_softmax(z):
        return math.nan
    return _binned_gap(_confidence(z), _hits(z, y), bins)


@shown(_percent("ECE, bins of equal mass"))
def ece_equal_mass(logits: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error over bins of equally many images, by their confidence.

        sum_b n_b / N |accuracy in b - mean confidence in b|

    The first N mod bins bins have one image more than the others. Images of the same confidence
    share the mean of their hits, so that it does not matter which of them falls into which bin.

    Args:
      logits: float[N, K].
      labels: int[N] class ids.
      bins: in [1, inf), their number.

    Returns:
      In [0, 1]; NaN if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).

    Source: Nguyen & O'Connor, 2015, "Posterior calibration and exploratory analysis for natural
    language processing models", https://arxiv.org/abs/1508.05154
    """
    z, y = _logits.check(logits, labels)
    if not _logits.has_softmax(z):
        return math.nan
    confidence = _confidence(z)
    gap = _mean_in_ties(_hits(z, y), confidence) - confidence
    in_bins = np.array_split(gap[np.argsort(confidence, kind="stable")], bins)
    return float(sum(abs(np.sum(gap_in_bin)) for gap_in_bin in in_bins) / len(y))


@shown(_percent("classwise ECE"))
def ece_classwise(logits: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Calibration error of the probability of every class, not of the predicted one alone.

        1/K sum_k sum_b n_kb / N |share of class k in b - mean p_k in b|

    The bins (lower, upper] are those of p_k.

    Args:
      logits: float[N, K].
      labels: int[N] class ids.
      bins: in [1, inf), their number for each class; all have the same width.

    Returns:
      In [0, 1]; NaN if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).

    Source: Kull et al., 2019, "Beyond temperature scaling: obtaining well-calibrated multiclass
    probabilities with Dirichlet calibration", https://arxiv.org/abs/1910.12656
    """
    z, y = _logits.check(logits, labels)
    if not _logits.has_softmax(z):
        return math.nan
    gaps = [_binned_gap(p_k, y == k, bins) for k, p_k in enumerate(softmax(z, axis=1).T)]
    return float(np.mean(gaps))


@shown(Shown("AURC"))
def aurc(logits: ArrayLike, labels: ArrayLike) -> float:
    """Area under the risk-coverage curve: the error when the least confident images are left out.

        1/N sum_i (errors among the i most confident images) / i

    Images of the same confidence share the mean of their errors, as on average over their orders.

    Args:
      logits: float[N, K].
      labels: int[N] class ids.

    Returns:
      In [0, 1]; NaN if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).

    Source: Geifman & El-Yaniv, 2017, "Selective classification for deep neural networks",
    https://arxiv.org/abs/1705.08500
    """
    z, y = _logits.check(logits, labels)
    if not _logits.has_softmax(z):
        return math.nan
    confidence = _confidence(z)
    errors = _mean_in_ties(1 - _hits(z, y), confidence)
    errors = errors[np.argsort(-confidence, kind="stable")]
    return float(np.mean(np.cumsum(errors) / np.arange(1, len(errors) + 1)))


@shown(_percent("balanced error"))
def balanced_error(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean error of the classes, each counted the same, among those that have test images.

        1 - mean_k (share of the images of class k that are hits)

    Args:
      logits: float[N, K].
      labels: int[N] class ids.

    Returns:
      In [0, 1]; NaN if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).

    Source: Menon et al., 2021, "Long-tail learning via logit adjustment",
    https://arxiv.org/abs/2007.07314
    """
    z, y = _logits.check(logits, labels)
    if not _logits.has_softmax(z):
        return math.nan
    counts = np.bincount(y)
    recalls = np.bincount(y, _hits(z, y))[counts > 0] / counts[counts > 0]
    return 1 - float(np.mean(recalls))


def _accuracy_of_classes(z: np.ndarray, y: np.ndarray, is_in_group: np.ndarray) -> float:
    """Compute the accuracy on the images of some classes, bool[K]; NaN without any."""
    in_group = is_in_group[y]
    if not _logits.has_softmax(z) or not np.any(in_group):
        return math.nan
    return float(np.mean(_hits(z, y)[in_group]))


@shown(_percent("many-shot accuracy", larger_is_better=True))
def many_accuracy(
    logits: ArrayLike, labels: ArrayLike, *, many: int = 100, class_counts: ArrayLike
) -> float:
    """Accuracy on the test images of classes with many training images.

        mean_i [argmax_k z_ik = y_i] over images with n_y > many

    Args:
      logits: float[N, K].
      labels: int[N] class ids.
      many: in [0, inf); a class with more training images has many.
      class_counts: K numbers n_k of training images.

    Returns:
      A share; NaN without such a test image, or if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).

    Source: Liu et al., 2019, "Large-scale long-tailed recognition in an open world",
    https://arxiv.org/abs/1904.05160
    """
    z, y = _logits.check(logits, labels)
    counts = _logits.check_counts(class_counts, z.shape[1])
    return _accuracy_of_classes(z, y, counts > many)


@shown(_percent("medium-shot accuracy", larger_is_better=True))
def medium_accuracy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    many: int = 100,
    few: int = 20,
    class_counts: ArrayLike,
) -> float:
    """Accuracy on the test images of classes with neither many nor few training images.

        mean_i [argmax_k z_ik = y_i] over images with few <= n_y <= many

    Args:
      logits: float[N, K].
      labels: int[N] class ids.
      many: in [0, inf); a class with more training images has many.
      few: in [0, inf), at most `many`; a class with fewer training images has few.
      class_counts: K numbers n_k of training images.

    Returns:
      A share; NaN without such a test image, or if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, a label outside [0, K), or few above many.

    Source: Liu et al., 2019, "Large-scale long-tailed recognition in an open world",
    https://arxiv.org/abs/1904.05160
    """
    z, y = _logits.check(logits, labels)
    counts = _logits.check_counts(class_counts, z.shape[1])
    if few > many:
        raise ValueError(f"few must be at most many, got few={few} and many={many}")
    return _accuracy_of_classes(z, y, (counts >= few) & (counts <= many))


@shown(_percent("few-shot accuracy", larger_is_better=True))
def few_accuracy(
    logits: ArrayLike, labels: ArrayLike, *, few: int = 20, class_counts: ArrayLike
) -> float:
    """Accuracy on the test images of classes with few training images.

        mean_i [argmax_k z_ik = y_i] over images with n_y < few

    Args:
      logits: float[N, K].
      labels: int[N] class ids.
      few: in [0, inf); a class with fewer training images has few.
      class_counts: K numbers n_k of training images.

    Returns:
      A share; NaN without such a test image, or if a row of logits has no softmax.

    Raises:
      ValueError: no images, shapes that do not fit, or a label outside [0, K).

    Source: Liu et al., 2019, "Large-scale long-tailed recognition in an open world",
    https://arxiv.org/abs/1904.05160
    """
    z, y = _logits.check(logits, labels)
    counts = _logits.check_counts(class_counts, z.shape[1])
    return _accuracy_of_classes(z, y, counts < few)


@shown(_percent("AUROC of the loss for wrong labels", larger_is_better=True))
def noise_auroc(
    logits: ArrayLike, labels: ArrayLike, *, train_losses: ArrayLike, wrong_labels: ArrayLike
) -> float:
    """How well the training loss tells wrong training labels from right ones; logits play no part.

        P(loss of a wrong label > loss of a right one) + P(equal) / 2

    Args:
      logits: not used.
      labels: not used.
      train_losses: float[n], of each training image, with the label it was trained on.
      wrong_labels: bool[n], whether that label is wrong.

    Returns:
      In [0, 1]; NaN where all labels are right or all are wrong, or if a loss is NaN.

    Raises:
      ValueError: arrays of different shapes.

    Source: Arazo et al., 2019, "Unsupervised label noise modeling and loss correction",
    https://arxiv.org/abs/1904.11238
    """
    del logits, labels
    losses, is_wrong = _training_labels(train_losses, wrong_labels)
    return auroc(losses[is_wrong], losses[~is_wrong])


@shown(_percent("wrong labels memorised"))
def memorised(
    logits: ArrayLike, labels: ArrayLike, *, train_losses: ArrayLike, wrong_labels: ArrayLike
) -> float:
    """Share of the wrong training labels that the network has learned; logits play no part.

        mean of [loss of a wrong label < log 2]: its class has more than half of the probability

    Args:
      logits: not used.
      labels: not used.
      train_losses: float[n], the cross-entropy of each training image with the label it was trained
        on.
      wrong_labels: bool[n], whether that label is wrong.

    Returns:
      In [0, 1]; NaN where all labels are right, or if a loss is NaN.

    Raises:
      ValueError: arrays of different shapes.

    Source: Arpit et al., 2017, "A closer look at memorization in deep networks",
    https://arxiv.org/abs/1706.05394
    """
    del logits, labels
    losses, is_wrong = _training_labels(train_losses, wrong_labels)
    if not is_wrong.any() or np.isnan(losses).any():
        return math.nan
    return float(np.mean(losses[is_wrong] < math.log(2)))


def _training_labels(
    train_losses: ArrayLike, wrong_labels: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Convert what is known of the training labels: float64[n], bool[n]."""
    losses = np.asarray(train_losses, np.float64)
    is_wrong = np.asarray(wrong_labels, bool)
    if losses.ndim != 1 or losses.shape != is_wrong.shape:
        raise ValueError(
            "train_losses and wrong_labels must be one number per training image, got the shapes "
            f"{losses.shape} and {is_wrong.shape}"
        )
    return losses, is_wrong


@shown(_percent("AUROC, out of distribution", larger_is_better=True))
def ood_auroc(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    score: str = "max_probability",
    ood_logits: ArrayLike,
) -> float:
    """How well a score tells the test images from out-of-distribution ones.

        P(score of a test image > score of an out-of-distribution one) + P(equal) / 2

    Args:
      logits: float[N, K].
      labels: int[N] class ids.
      score: max_probability (max_k p_k), energy (log sum_k exp z_k) or max_logit (max_k z_k).
      ood_logits: float[M, K], of out-of-distribution images.

    Returns:
      In [0, 1]; NaN if a row of logits has no softmax.

    Raises:
      ValueError: another score, no images, shapes that do not fit, or a label outside [0, K).

    Source: Hendrycks & Gimpel, 2017, "A baseline for detecting misclassified and
    out-of-distribution examples in neural networks", https://arxiv.org/abs/1610.02136; energy: Liu
    et al., 2020, https://arxiv.org/abs/2010.03759; max_logit: Hendrycks et al., 2022,
    https://arxiv.org/abs/1911.11132
    """
    inside, outside = _scores(logits, labels, score, ood_logits)
    return auroc(inside, outside)


@shown(_percent("AUPR, out of distribution", larger_is_better=True))
def ood_aupr(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    score: str = "max_probability",
    ood_logits: ArrayLike,
) -> float:
    """Average precision of a score as a detector of out-of-distribution images, the positive class.

        sum_t (recall_t - recall_t-1) precision_t,  over thresholds t of the score, ascending:
        images whose score is at most t are taken for out-of-distribution

    Args:
      logits: float[N, K].
      labels: int[N] class ids.
      score: max_probability (max_k p_k), energy (log sum_k exp z_k) or max_logit (max_k z_k).
      ood_logits: float[M, K], of out-of-distribution images.

    Returns:
      In [0, 1]; about M / (N + M) by chance. NaN if a row of logits has no softmax.

    Raises:
      ValueError: another score, no images, shapes that do not fit, or a label outside [0, K).

    Source: Hendrycks & Gimpel, 2017, "A baseline for detecting misclassified and
    out-of-distribution examples in neural networks", https://arxiv.org/abs/1610.02136; energy: Liu
    et al., 2020, https://arxiv.org/abs/2010.03759; max_logit: Hendrycks et al., 2022,
    https://arxiv.org/abs/1911.11132
    """
    inside, outside = _scores(logits, labels, score, ood_logits)
    return average_precision(-outside, -inside)


@shown(_percent("FPR95, out of distribution"))
def ood_fpr95(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    score: str = "max_probability",
    ood_logits: ArrayLike,
) -> float:
    """Share of out-of-distribution images accepted where 95 % of the test images are.

        share of out-of-distribution images with a score of at least t;  t is the largest score that
        at least 95 % of the test images reach

    Args:
      logits: float[N, K].
      labels: int[N] class ids.
      score: max_probability (max_k p_k), energy (log sum_k exp z_k) or max_logit (max_k z_k).
      ood_logits: float[M, K], of out-of-distribution images.

    Returns:
      A share; NaN if a row of logits has no softmax.

    Raises:
      ValueError: another score, no images, shapes that do not fit, or a label outside [0, K).

    Source: Liang et al., 2018, "Enhancing the reliability of out-of-distribution image detection in
    neural networks", https://arxiv.org/abs/1706.02690; energy: Liu et al., 2020,
    https://arxiv.org/abs/2010.03759; max_logit: Hendrycks et al., 2022,
    https://arxiv.org/abs/1911.11132
    """
    inside, outside = _scores(logits, labels, score, ood_logits)
    if np.isnan(inside).any():
        return math.nan
    num_accepted = -(-ACCEPTED_PERCENT * len(inside) // 100)  # rounded up
    threshold = np.sort(inside)[-num_accepted]
    return float(np.mean(outside >= threshold))


def _scores(
    logits: ArrayLike, labels: ArrayLike, score: str, ood_logits: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the scores of test images and of out-of-distribution ones, higher for test images.

    Returns:
      float64[N] and float64[M]; all NaN if a row of logits has no softmax.

    Raises:
      ValueError: another score, no images, shapes that do not fit, or a label outside [0, K).
    """
    if score not in SCORES:
        raise unknown("score", str(score), SCORES)
    inside, _ = _logits.check(logits, labels)
    outside = _logits.check_logits(ood_logits, "ood_logits")
    if not len(outside) or outside.shape[1] != inside.shape[1]:
        raise ValueError(
            f"ood_logits must be float[M, {inside.shape[1]}] with at least one image, got the "
            f"shape {outside.shape}"
        )
    if not (_logits.has_softmax(inside) and _logits.has_softmax(outside)):
        return np.full(len(inside), math.nan), np.full(len(outside), math.nan)
    return _score(inside, score), _score(outside, score)


def _score(logits: np.ndarray, score: str) -> np.ndarray:
    if score == "energy":
        return np.asarray(logsumexp(logits, axis=1))
    if score == "max_logit":
        return np.max(logits, 1)
    return _confidence(logits)


METRICS: dict[str, Callable[..., float]] = {
    f.__name__: f
    for f in (
        accuracy,
        nll,
        brier,
        top5,
        ece,
        ece_equal_mass,
        ece_classwise,
        aurc,
        balanced_error,
        many_accuracy,
        medium_accuracy,
        few_accuracy,
        noise_auroc,
        memorised,
        ood_auroc,
        ood_aupr,
        ood_fpr95,
    )
}


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Compute the area under the ROC curve of a score, from ranks; ties count half.

    Args:
      positive: float64[n], scores that should be high.
      negative: float64[m], scores that should be low.

    Returns:
      In [0, 1]; NaN if either is empty or a score is NaN.

    Source: Hanley & McNeil, 1982, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve"

    >>> auroc(np.array([2.0, 1.0]), np.array([1.0, 0.0]))  # three pairs and a half of four
    0.875
    """
    scores = np.concatenate([positive, negative]).astype(np.float64)  # ranks have its type
    num_positive = len(positive)
    num_pairs = num_positive * len(negative)
    if not num_pairs or np.isnan(scores).any():
        return math.nan
    rank_sum = np.sum(rankdata(scores)[:num_positive])
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / num_pairs)


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """Compute the area under the precision-recall curve of a score, by steps; ties are one step.

    Args:
      positive: float64[n], scores that should be high.
      negative: float64[m], scores that should be low.

    Returns:
      In [0, 1]; NaN if `positive` is empty or a score is NaN.

    >>> average_precision(np.array([2.0, 0.0]), np.array([1.0]))  # (1 + 2/3) / 2
    0.8333333333333333
    """
    scores = np.concatenate([positive, negative])
    if not len(positive) or np.isnan(scores).any():
        return math.nan
    _, place, num_tied = np.unique(-scores, return_inverse=True, return_counts=True)
    num_hits = np.bincount(place[: len(positive)], minlength=len(num_tied))
    precision = np.cumsum(num_hits) / np.cumsum(num_tied)
    return float(np.sum(num_hits * precision) / len(positive))
