"""Masked sums over batches on the device; finished once, in float64, on the host. So every image
counts the same.

A metric is one record: what a batch adds up, how that is finished, which direction is better, which
difference matters, how it is shown. METRICS are those that are always measured; `--metrics
my_metrics.mine` adds your own, a `Metric` or a function of hyperparameters that returns one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnnlab.losses import cross_entropy, mean_squared_error
from cnnlab.softmax import predict, softmax
from cnnlab.types import Metrics

ECE_BINS = 15


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
            label="NLL",
            unit="nats",
            description="Mean negative logarithm of the probability of the right class.",
        ),
        Metric(
            "brier",
            _brier,
            margin=0.02,
            label="Brier score",
            unit="0 to 2",
            difference_unit="",
            description="Mean squared distance of the probabilities from the one-hot class.",
        ),
        Metric(
            "ece",
            _calibration,
            _ece,
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


def summarise(parts: Iterable[Mapping[str, ArrayLike]], extra: Sequence[Metric] = ()) -> Metrics:
    """Compute the metrics of a whole data set from the sums of its batches.

    Args:
      parts: what `sums` returned for each batch, on device or host.
      extra: metrics besides METRICS.

    Returns:
      count; loss and each metric: floats; per_class_accuracy: K shares (None for a class without
      examples); confusion: K rows of K counts; calibration: for each of 15 bins of confidence the
      count, the sum of confidences, the hits.
    """
    added: dict[str, np.ndarray] = {}
    for part in jax.device_get(list(parts)):
        for name, value in part.items():
            added[name] = added.get(name, np.float64(0)) + np.asarray(value, np.float64)
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
        "confusion": confusion.astype(int).tolist(),
    }


def numbers(result: Metrics) -> dict[str, float]:
    """Select the loss and the metrics from what `summarise` returned."""
    return {name: value for name, value in result.items() if isinstance(value, float)}


def describe(result: Metrics) -> str:
    """Format what `summarise` returned as one line: four of METRICS, and the user's own."""
    shown = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier", "ece": "ECE"}
    shown |= {name: name for name in numbers(result) if name != "loss" and name not in METRICS}
    values = [f"{label} {result[name]:.4f}" for name, label in shown.items()]
    return "  ".join(values) + f"  ({result['count']:,} images)"
