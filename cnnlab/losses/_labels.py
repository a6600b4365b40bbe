"""What a label may be, and how it picks its loss: the half of every loss that is the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from cnnlab.softmax import as_float


def check(logits: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Logits and labels as arrays, once they are known to belong together.

    Args:
      logits: float[..., K].
      labels: int[...] class ids or float[..., K] target distributions.

    Returns:
      float32[..., K] and int32[...] (int64 stays) or float32[..., K].

    Raises:
      ValueError: the shapes do not fit, the labels are neither, or a visible id lies outside [0, K).
    """
    logits, given, labels = as_float(logits), labels, jnp.asarray(labels)
    if logits.ndim == 0:
        raise ValueError("logits must be float[..., K], got a scalar")
    if jnp.issubdtype(labels.dtype, jnp.floating):
        if labels.shape != logits.shape:
            raise ValueError(
                f"float labels are target distributions and must have the logits' shape {logits.shape}, "
                f"got {labels.shape}; class ids must be integers"
            )
        return logits, as_float(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integer class ids or float distributions, got {labels.dtype}")
    if labels.shape != logits.shape[:-1]:
        hint = ""
        if labels.shape == logits.shape:
            hint = "; one-hot labels must be float (labels.astype(float)), or take their argmax"
        elif labels.shape == (*logits.shape[:-1], 1):
            hint = "; drop the last axis (labels[..., 0])"
        raise ValueError(f"class ids must have the logits' batch shape {logits.shape[:-1]}, got {labels.shape}{hint}")
    if not isinstance(labels, Tracer) and labels.size:
        # As given: jnp.asarray wraps 2**32 + 1 to class 1.
        classes, low, high = logits.shape[-1], np.min(given), np.max(given)
        if low < 0 or high >= classes:
            raise ValueError(f"class ids must lie in [0, {classes}), got {low if low < 0 else high}")
    return logits, labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32)


def is_ids(labels: jax.Array) -> bool:
    """Whether checked labels are class ids rather than distributions."""
    return jnp.issubdtype(labels.dtype, jnp.integer)


def poison(loss: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """NaN, in value and gradient, where a class id turned out (under jit) to lie outside [0, K)."""
    if not is_ids(labels):
        return loss
    valid = (labels >= 0) & (labels < classes)
    return loss * jnp.where(valid, 1.0, jnp.nan).astype(loss.dtype)


def select(per_class: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of the labelled class, or its mean under the labelled distribution.

    Args:
      per_class: float32[..., K], the loss of every possible true class.
      labels: as `check` returns them.

    Returns:
      float32[...]: per_class[y], or sum_k q_k per_class[k] with 0 * inf = 0.
    """
    if is_ids(labels):
        picked = jnp.take_along_axis(per_class, labels[..., None], -1, mode="clip")[..., 0]
        return poison(picked, labels, per_class.shape[-1])
    return jnp.sum(labels.astype(per_class.dtype) * jnp.where(labels != 0, per_class, 0), -1)


def distribution(labels: jax.Array, classes: int, dtype) -> jax.Array:
    """Checked labels as distributions float[..., K]: one-hot for ids."""
    return jax.nn.one_hot(labels, classes, dtype=dtype) if is_ids(labels) else labels.astype(dtype)
