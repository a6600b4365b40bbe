"""Masked sums over batches on the device; finished once, in float64, on the host. So every image
counts the same.

A metric is one record: what a batch adds up, how that is finished, which direction is better, which
difference matters, how it is shown. METRICS are those that are always measured; `--metrics
my_metrics.mine` adds your own, a `Metric` or a function of hyperparameters that returns one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnnlab.losses import cross_entropy, mean_squared_error
from cnnlab.softmax import predict, softmax
from cnnlab.types import JsonObject, Metrics

ECE_BINS = 15
# Classes up to which a confusion matrix is stored as numbers: 10,000 of them, 40 kB at most.
WRITTEN_OUT = 100


def mean(total: np.ndarray, count: float) -> float:
    """Divide a sum over examples by their number."""
    return float(total / count)


@dataclass(frozen=True)
class Metric:
    """A number that says how good a classifier is on a set of images.

    Attributes:
      name: its key in summaries and tables.
      sums: (logits float32[B, K], labels int32[B], mask bool[B]) -> an array that adds up over
        batches and devices; examples outside the mask must add nothing.
      finish: (the sum over all images float64[...], number of images) -> the metric.
      larger_is_better: the direction.
      margin: differences within it count as none, unless --margin says another.
      low, high: no value lies outside.
      label: its name for people; empty: `name`.
      factor, unit, digits: how values are shown: times the factor, so many decimals.
      difference_unit: of differences; None: the same unit.
      description: what it is, in a sentence, and its source.
    """

    name: str
    sums: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    finish: Callable[[np.ndarray, float], float] = mean
    larger_is_better: bool = False
    margin: float = 0.01
    low: float = -math.inf
    high: float = math.inf
    label: str = ""
    factor: float = 1.0
    unit: str = ""
    difference_unit: str | None = None
    digits: int = 4
    description: str = ""

    def __call__(self) -> Metric:
        """Return the record itself: named by its path it is a part without hyperparameters."""
        return self

    def __hash__(self) -> int:
        return hash((self.name, self.sums, self.finish))


def _masked_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0))


def _hits(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum((predict(logits) == labels) & mask, dtype=jnp.int32)


def _nll(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    return _masked_sum(cross_entropy(logits, labels), mask)


def _brier(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    return _masked_sum(mean_squared_error(logits, labels), mask)


def _calibration(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum, per bin of confidence, the examples, their confidences and the hits: float32[3, 15]."""
    confidence = jnp.max(softmax(logits), -1)
    hit = (predict(logits) == labels) & mask
    bins = jnp.clip(jnp.ceil(confidence * ECE_BINS).astype(jnp.int32) - 1, 0, ECE_BINS - 1)
    binned = jnp.stack(
        [
            mask.astype(confidence.dtype),
            jnp.where(mask, confidence, 0),
            hit.astype(confidence.dtype),
        ]
    )
    return jnp.zeros((3, ECE_BINS), confidence.dtype).at[:, bins].add(binned)


def _ece(total: np.ndarray, count: float) -> float:
    """Compute the expected calibration error from the sums of `_calibration`.

    Source: Naeini et al., 2015, AAAI; 15 equal bins (lower, upper] as in Guo et al., 2017, arXiv
    1706.04599.
    """
    del count
    in_bin, confidence, hits = total
    return float(np.abs(hits - confidence).sum() / in_bin.sum())


def _top5(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    z_y = jnp.take_along_axis(logits, labels[:, None], -1)
    place = jnp.arange(logits.shape[-1])[None, :]
    # Ties go to the first class, as in `predict`; a NaN beats everything, so it is never a hit.
    worse = (logits < z_y) | ((logits == z_y) & (place >= labels[:, None]))
    return jnp.sum((jnp.sum(~worse, -1) < 5) & mask, dtype=jnp.int32)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "accuracy",
            _hits,
            mean,
            True,
            0.01,
            0.0,
            1.0,
            factor=100,
            unit="%",
            difference_unit="pp",
            digits=2,
            description="Share of images whose class has the largest logit.",
        ),
        Metric(
            "nll",
            _nll,
            margin=0.05,
            low=0.0,
            label="NLL",
            unit="nats",
            description="Mean negative logarithm of the probability of the right class.",
        ),
        Metric(
            "brier",
            _brier,
            margin=0.02,
            low=0.0,
            high=2.0,
            label="Brier score",
            unit="0 to 2",
            difference_unit="",
            description="Mean squared distance of the probabilities from the one-hot class.",
        ),
        Metric(
            "ece",
            _calibration,
            _ece,
            low=0.0,
            high=1.0,
            label="ECE",
            factor=100,
            unit="%",
            difference_unit="pp",
            digits=2,
            description="Expected calibration error: confidence less accuracy, over 15 equal bins "
            "of confidence.",
        ),
        Metric(
            "top5",
            _top5,
            mean,
            True,
            0.01,
            0.0,
            1.0,
            "top-5 accuracy",
            100,
            "%",
            "pp",
            2,
            description="Share of images whose class is among the five largest logits.",
        ),
    )
}


def sums(
    logits: jax.Array,
    labels: jax.Array,
    loss: jax.Array,
    mask: jax.Array,
    extra: Sequence[Metric] = (),
) -> dict[str, jax.Array]:
    """Compute what one batch adds to the metrics.

    Args:
      logits: float32[B, K].
      labels: int32[B].
      loss: float32[B], the training loss.
      mask: bool[B], which examples count.
      extra: metrics besides METRICS.

    Returns:
      count int32[]; the sum loss float32[]; confusion int32[K, K] (true class, predicted class);
      the sums of each metric under its name.
    """
    classes = logits.shape[-1]
    return {
        "count": jnp.sum(mask, dtype=jnp.int32),
        "loss": _masked_sum(loss, mask),
        "confusion": jnp.zeros((classes, classes), jnp.int32)
        .at[labels, predict(logits)]
        .add(mask.astype(jnp.int32)),
        **{
            metric.name: metric.sums(logits, labels, mask) for metric in (*METRICS.values(), *extra)
        },
    }


def add(total: dict[str, np.ndarray], part: Mapping[str, ArrayLike]) -> None:
    """Add the sums of a batch to a total, in float64. With many classes a batch's confusion matrix
    is large, so those of several batches are not collected.

    Args:
      total: changed in place; empty before the first batch.
      part: what `sums` returned, on device or host.
    """
    for name, value in jax.device_get(dict(part)).items():
        if name in total:
            total[name] += value
        else:
            total[name] = np.array(value, np.float64)


def _added(parts: Iterable[Mapping[str, ArrayLike]]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for part in parts:
        add(total, part)
    return total


def summarise(parts: Iterable[Mapping[str, ArrayLike]], extra: Sequence[Metric] = ()) -> Metrics:
    """Compute the metrics of a whole data set from the sums of its batches.

    Args:
      parts: what `sums` returned for each batch, on device or host, or the total of several.
      extra: metrics besides METRICS.

    Returns:
      count; loss and each metric: floats; per_class_accuracy: K shares (None for a class without
      examples); confusion: as `written_confusion`; calibration: for each of 15 bins of confidence
      the count, the sum of confidences, the hits.
    """
    added = _added(parts)
    count = float(added["count"])
    confusion = added["confusion"]
    per_class = [
        hit / n if n else None for hit, n in zip(np.diag(confusion), confusion.sum(1), strict=True)
    ]
    return {
        "count": int(count),
        "loss": mean(added["loss"], count),
        **{
            metric.name: float(metric.finish(added[metric.name], count))
            for metric in (*METRICS.values(), *extra)
        },
        "calibration": added["ece"].tolist(),
        "per_class_accuracy": [None if share is None else float(share) for share in per_class],
        "confusion": written_confusion(confusion),
    }


def summarise_seeds(
    parts: Iterable[Mapping[str, ArrayLike]], extra: Sequence[Metric] = ()
) -> list[Metrics]:
    """Compute the same for each of several networks, from sums with a leading axis for them."""
    total = _added(parts)
    num_seeds = len(total["count"])
    return [
        summarise([{name: value[i] for name, value in total.items()}], extra)
        for i in range(num_seeds)
    ]


def written_confusion(matrix: np.ndarray) -> list[list[int]] | list[str]:
    """Write a confusion matrix as it is stored: K rows, true class by true class.

    Args:
      matrix: counts [K, K] (true class, predicted class).

    Returns:
      Up to WRITTEN_OUT classes K lists of K counts. Above that K texts such as "0:48 17:2", the
      predicted classes with their counts, without those of count 0: a thousand classes would be a
      million numbers, nearly all of them 0.
    """
    rows = matrix.astype(int)
    if len(rows) <= WRITTEN_OUT:
        return rows.tolist()
    return [" ".join(f"{k}:{row[k]}" for k in np.flatnonzero(row)) for row in rows]


def confusion_matrix(result: Metrics) -> np.ndarray:
    """Read the confusion matrix of what `summarise` returned, or of a file that it was written to.

    Returns:
      int64[K, K] (true class, predicted class).
    """
    rows = result["confusion"]
    if not isinstance(rows[0], str):
        return np.array(rows, np.int64)
    matrix = np.zeros((len(rows), len(rows)), np.int64)
    for true, row in enumerate(rows):
        for pair in row.split():
            predicted, _, count = pair.partition(":")
            matrix[true, int(predicted)] = int(count)
    return matrix


def without_large_confusion(result: Metrics) -> Metrics:
    """Leave the confusion matrix out of what `summarise` returned, if it has more than WRITTEN_OUT
    classes: those of several test sets would make a summary of megabytes.
    """
    if len(result["confusion"]) <= WRITTEN_OUT:
        return result
    return {name: value for name, value in result.items() if name != "confusion"}


@dataclass(frozen=True)
class Mistake:
    """Images of a class that were taken for another.

    Attributes:
      true, predicted: the classes.
      count: how many.
      share: of the images of the true class.
    """

    true: int
    predicted: int
    count: float
    share: float


def largest_confusions(matrix: np.ndarray, most: int = 20) -> list[Mistake]:
    """Find the largest entries off the diagonal of a confusion matrix, by their counts.

    Args:
      matrix: counts [K, K] (true class, predicted class).
      most: how many.

    Returns:
      The largest first; equal ones by the larger share, then in the order of the classes.
    """
    of_class = matrix.sum(1)
    true, predicted = np.nonzero(matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype)))
    counts = matrix[true, predicted]
    shares = counts / of_class[true]
    chosen = np.lexsort((predicted, true, -shares, -counts))[:most]
    return [
        Mistake(int(true[i]), int(predicted[i]), counts[i].item(), float(shares[i])) for i in chosen
    ]


def named_confusions(result: Metrics, class_names: Sequence[str]) -> list[JsonObject]:
    """Describe the largest confusions with the names of their classes, as summary.json has them.

    Returns:
      {"true", "predicted", "count", "share"} of each.
    """
    return [
        {
            "true": class_names[mistake.true],
            "predicted": class_names[mistake.predicted],
            "count": mistake.count,
            "share": mistake.share,
        }
        for mistake in largest_confusions(confusion_matrix(result))
    ]


def numbers(result: Metrics) -> dict[str, float]:
    """Select the loss and the metrics from what `summarise` returned."""
    return {name: value for name, value in result.items() if isinstance(value, float)}


def describe(result: Metrics) -> str:
    """Format what `summarise` returned as one line: four of METRICS, and the user's own."""
    shown = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier", "ece": "ECE"}
    shown |= {name: name for name in numbers(result) if name != "loss" and name not in METRICS}
    values = [f"{label} {result[name]:.4f}" for name, label in shown.items()]
    return "  ".join(values) + f"  ({result['count']:,} images)"
