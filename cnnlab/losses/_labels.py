"""What a label and a hyperparameter may be, and how a label picks its loss: the half of every loss
that is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import SupportsFloat, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.errors import TracerArrayConversionError
from jax.typing import ArrayLike, DTypeLike

from cnnlab.softmax import as_float

T = TypeVar("T")


def check(logits: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Check that logits and labels belong together, and convert them to arrays.

    Args:
      logits: float[..., K].
      labels: int[...] class ids or float[..., K] target distributions.

    Returns:
      float32[..., K] and int32[...] (int64 stays) or float32[..., K].

    Raises:
      ValueError: the shapes do not fit, the labels are neither, or a visible id lies outside [0,
        K).
    """
    logits = as_float(logits)
    original = labels
    labels = jnp.asarray(labels)
    if logits.ndim == 0:
        raise ValueError("logits must be float[..., K], got a scalar")
    if jnp.issubdtype(labels.dtype, jnp.floating):
        if labels.shape != logits.shape:
            raise ValueError(
                "float labels are target distributions and must have the logits' shape "
                f"{logits.shape}, got {labels.shape}; class ids must be integers"
            )
        return logits, as_float(labels).astype(logits.dtype)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integer class ids or float distributions, got {labels.dtype}"
        )
    if labels.shape != logits.shape[:-1]:
        hint = ""
        if labels.shape == logits.shape:
            hint = "; one-hot labels must be float (labels.astype(float)), or take their argmax"
        elif labels.shape == (*logits.shape[:-1], 1):
            hint = "; drop the last axis (labels[..., 0])"
        raise ValueError(
            f"class ids must have the logits' batch shape {logits.shape[:-1]}, got "
            f"{labels.shape}{hint}"
        )
    _check_range(original, logits.shape[-1])
    return logits, labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32)


def _check_range(labels: ArrayLike, classes: int) -> None:
    """Check class ids that can be read: all but traced ones, and those on other processes' devices.

    As they were passed: jnp.asarray wraps 2**32 + 1 to class 1. And by NumPy: under jit a
    jnp.min of a concrete array is traced.
    """
    try:
        ids = np.asarray(labels)
    except (TracerArrayConversionError, RuntimeError):
        return
    if ids.size and (ids.min() < 0 or ids.max() >= classes):
        first = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"class ids must lie in [0, {classes}), got {first}")


def is_ids(labels: jax.Array) -> bool:
    """Return whether checked labels are class ids rather than distributions."""
    return jnp.issubdtype(labels.dtype, jnp.integer)


def poison(loss: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """Set a loss to NaN, in value and gradient, where a class id (under jit) is outside [0, K)."""
    if not is_ids(labels):
        return loss
    valid = (labels >= 0) & (labels < classes)
    return loss * jnp.where(valid, 1.0, jnp.nan).astype(loss.dtype)


def pick(x: jax.Array, labels: jax.Array) -> jax.Array:
    """Pick x[..., y] for checked ids. An id outside [0, K) gets the value of some other class, so
    `poison` must follow.
    """
    return jnp.take_along_axis(x, labels[..., None], -1, mode="clip")[..., 0]


def is_label(labels: jax.Array, classes: int) -> jax.Array:
    """Mark the class that a checked id names: bool[..., K]. This fuses into what reads it, where a
    one-hot matrix would not.
    """
    return (
        lax.broadcasted_iota(labels.dtype, (*labels.shape, classes), labels.ndim)
        == labels[..., None]
    )


def distribution(labels: jax.Array, classes: int, dtype: DTypeLike) -> jax.Array:
    """Convert checked labels to distributions float[..., K]: one-hot for ids."""
    return is_label(labels, classes).astype(dtype) if is_ids(labels) else labels.astype(dtype)


def bounded(values: jax.Array, share: jax.Array) -> jax.Array:
    """Bound values whose share is 0, so that share * value is 0 also where the value is infinite.

    The bound, about 1e19 in float32, then is the derivative with respect to the share. The values
    get no slope from where they are infinite.

    Args:
      values: float[..., K] or float[...]; -inf and inf occur where a class is impossible.
      share: float of the same shape, by which the caller multiplies.
    """
    largest = float(jnp.finfo(values.dtype).max) ** 0.5  # the square root: callers may scale it
    return jnp.where(share == 0, jnp.clip(values, -largest, largest), values)


def by_class(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    logits: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
) -> jax.Array:
    """Lift a loss of class ids to distributions: compute loss(z, y), or sum_k q_k loss(z, k).

    Args:
      loss: (logits float32[..., K], ids int32[...]) -> float32[...].
      logits, labels: as given to the public function.
      weights: float32[K] factors of the classes; None for ones.

    Returns:
      float32[...]. A distribution costs K evaluations, one after the other; none of them is kept
      for the backward pass.

    Raises:
      ValueError: as `check`.
    """
    logits, labels = check(logits, labels)
    classes = logits.shape[-1]
    if is_ids(labels):
        value = loss(logits, labels)
        return poison(
            value if weights is None else value * jnp.take(weights, labels, mode="clip"),
            labels,
            classes,
        )
    q = labels if weights is None else labels * jnp.broadcast_to(weights, labels.shape)

    def add(total: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
        share = jnp.take(q, k, axis=-1)
        of_k = loss(logits, jnp.full(logits.shape[:-1], k))
        return total + share * bounded(of_k, share), None

    # Of both, so that under shard_map it varies over every axis that one of them does.
    start = jnp.zeros_like(logits[..., 0] + q[..., 0])
    return lax.scan(jax.checkpoint(add), start, jnp.arange(classes, dtype=jnp.int32))[0]


def in_range(name: str, value: T, interval: str) -> T:
    """Check that a hyperparameter lies in an interval such as "(0, 1]", and return it as a Python
    number. Traced values pass.

    Raises:
      ValueError: it is not a number in the interval.
    """
    if isinstance(value, Tracer):
        return value
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    try:
        number = float(cast(SupportsFloat, value))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below):
        raise ValueError(f"{name} must lie in {interval}, got {value}")
    return cast(T, number)


def per_class(name: str, values: ArrayLike, classes: int, dtype: DTypeLike) -> jax.Array:
    """Check that a hyperparameter has a positive, finite number for each class, and convert it to
    float[K].

    Raises:
      ValueError: another shape, or visible values that are not positive and finite.
    """
    array = values if isinstance(values, jax.Array) else np.asarray(values)
    if array.shape != (classes,) or not jnp.issubdtype(array.dtype, jnp.number):
        raise ValueError(
            f"{name} must be one number for each of the {classes} classes, got "
            f"{array.dtype}{array.shape}"
        )
    if not isinstance(array, Tracer) and not np.all(
        (np.asarray(array) > 0) & (np.asarray(array) < np.inf)
    ):
        raise ValueError(f"{name} must all be positive and finite, got {array}")
    return jnp.asarray(array, dtype)
