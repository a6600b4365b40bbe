"""What logits, labels and class counts may be, and what metrics and transforms compute of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def check_logits(logits: ArrayLike, name: str = "logits") -> np.ndarray:
    """Convert logits to float64[N, K].

    Args:
      logits: float[N, K].
      name: of the parameter, for the message.

    Raises:
      ValueError: another shape, or no classes.
    """
    array = np.asarray(logits, np.float64)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name} must be float[N, K], got the shape {array.shape}")
    return array


def check(logits: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Check that logits and labels belong together, and convert them to arrays.

    Args:
      logits: float[N, K].
      labels: int[N] class ids.

    Returns:
      float64[N, K] and int64[N].

    Raises:
      ValueError: no images, shapes that do not fit, labels that are not whole numbers, or one
        outside [0, K).
    """
    scores = check_logits(logits)
    ids = np.asarray(labels)
    num_images, num_classes = scores.shape
    if ids.shape != (num_images,):
        raise ValueError(f"labels must have the shape ({num_images},) of images, got {ids.shape}")
    if not num_images:
        raise ValueError("there are no images: logits has no rows")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"labels must be integer class ids, got {ids.dtype}")
    outside = ids[(ids < 0) | (ids >= num_classes)]
    if outside.size:
        raise ValueError(f"class ids must lie in [0, {num_classes}), got {outside[0]}")
    return scores, ids.astype(np.int64)


def check_counts(class_counts: ArrayLike, num_classes: int) -> np.ndarray:
    """Convert the number of training images of each class to float64[K].

    Raises:
      ValueError: another number of classes, or a number that is negative or not finite.
    """
    counts = np.asarray(class_counts, np.float64)
    if counts.shape != (num_classes,):
        raise ValueError(
            f"class_counts must be {num_classes} numbers, one per class; got the shape "
            f"{counts.shape}"
        )
    if not np.all((counts >= 0) & np.isfinite(counts)):
        raise ValueError(f"class_counts must be finite and at least 0, got {counts.tolist()}")
    return counts


def has_softmax(logits: np.ndarray) -> bool:
    """Return whether each row has a softmax: nothing is NaN, and the largest logit is finite."""
    return bool(np.all(np.isfinite(np.max(logits, 1))))


def of_labels(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the value of the right class of each image: float64[N] of float64[N, K]."""
    return np.take_along_axis(values, labels[:, None], 1)[:, 0]
