"""Masked sums over batches on the device; divided once, in float64, on the host. So every image counts the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab.losses import cross_entropy, mean_squared_error
from cnnlab.softmax import predict, softmax

ECE_BINS = 15


def sums(logits: jax.Array, labels: jax.Array, loss: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """What one batch adds to the metrics.

    Args:
      logits: float32[B, K].
      labels: int32[B].
      loss: float32[B], the training loss.
      mask: bool[B], which examples count.

    Returns:
      count int32[], the sums loss, nll, brier float32[], top5 int32[], confusion int32[K, K] (true class, predicted
      class), and calibration float32[3, 15]: per confidence bin the count, the sum of confidences, the hits.
    """
    classes = logits.shape[-1]
    predicted = predict(logits)
    confidence = jnp.max(softmax(logits), -1)
    hit = (predicted == labels) & mask
    masked_sum = lambda x: jnp.sum(jnp.where(mask, x, 0))
    own, place = jnp.take_along_axis(logits, labels[:, None], -1), jnp.arange(classes)[None, :]
    # Ties go to the first class, as in `predict`; a NaN beats everything, so it is never a hit.
    worse = (logits < own) | ((logits == own) & (place >= labels[:, None]))
    better = jnp.sum(~worse, -1)
    bins = jnp.clip(jnp.ceil(confidence * ECE_BINS).astype(jnp.int32) - 1, 0, ECE_BINS - 1)
    binned = jnp.stack([mask.astype(confidence.dtype), jnp.where(mask, confidence, 0), hit.astype(confidence.dtype)])
    return {
        "count": jnp.sum(mask, dtype=jnp.int32),
        "loss": masked_sum(loss),
        "nll": masked_sum(cross_entropy(logits, labels)),
        "brier": masked_sum(mean_squared_error(logits, labels)),
        "top5": jnp.sum((better < 5) & mask, dtype=jnp.int32),
        "confusion": jnp.zeros((classes, classes), jnp.int32).at[labels, predicted].add(mask.astype(jnp.int32)),
        "calibration": jnp.zeros((3, ECE_BINS), confidence.dtype).at[:, bins].add(binned),
    }


def summarise(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of a whole data set from the sums of its batches.

    Args:
      parts: what `sums` returned for each batch, on device or host.

    Returns:
      count; loss, nll (nats), brier (0..2): means; accuracy, top5, ece: shares in [0, 1];
      per_class_accuracy: K shares (None for a class without examples); confusion: K rows of K counts; calibration: for
      each of 15 bins of confidence the count, the sum of confidences, the hits.

    Source: ECE, Naeini et al., 2015, AAAI; 15 equal bins (lower, upper] as in Guo et al., 2017, arXiv 1706.04599.
    """
    added: dict[str, np.ndarray] = {}
    for part in jax.device_get(list(parts)):
        for name, value in part.items():
            added[name] = added.get(name, np.float64(0)) + np.asarray(value, np.float64)
    count, confusion = added["count"], added["confusion"]
    in_bin, confidence, hits = added["calibration"]
    per_class = [hit / n if n else None for hit, n in zip(np.diag(confusion), confusion.sum(1), strict=True)]
    return {
        "count": int(count),
        "loss": float(added["loss"] / count),
        "accuracy": float(np.trace(confusion) / count),
        "top5": float(added["top5"] / count),
        "nll": float(added["nll"] / count),
        "brier": float(added["brier"] / count),
        "ece": float(np.abs(hits - confidence).sum() / in_bin.sum()),
        "calibration": added["calibration"].tolist(),
        "per_class_accuracy": [None if share is None else float(share) for share in per_class],
        "confusion": confusion.astype(int).tolist(),
    }


def describe(result: Mapping[str, Any]) -> str:
    """A line of what `summarise` returned."""
    shown = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier", "ece": "ECE"}
    return "  ".join(f"{name} {result[key]:.4f}" for key, name in shown.items()) + f"  ({result['count']:,} images)"
