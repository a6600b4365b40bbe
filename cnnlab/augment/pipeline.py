"""Operations one after the other, each with its own keys; images between pixels and normalised."""

from __future__ import annotations

import collections
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from cnnlab.collectives import example_keys

Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class Operation:
    """An operation of a pipeline.

    Attributes:
      name: from which its keys are derived; unique within the pipeline.
      function: (keys, batch, **asked) -> batch.
      asks: which of key and run_key it takes.
    """

    name: str
    function: Callable[..., Batch]
    asks: tuple[str, ...] = ()


def pipeline(
    named: Iterable[tuple[str, Callable[..., Batch], Sequence[str]]],
) -> tuple[Operation, ...]:
    """Build operations from (name, function, what it asks for).

    The second of a name is called "name 2", for keys of its own.
    """
    seen: collections.Counter[str] = collections.Counter()
    operations = []
    for name, function, asks in named:
        seen[name] += 1
        operations.append(
            Operation(name if seen[name] == 1 else f"{name} {seen[name]}", function, tuple(asks))
        )
    return tuple(operations)


def apply(
    operations: Sequence[Operation],
    batch: Batch,
    key: jax.Array,
    run_key: jax.Array,
    axis_name: str | None = None,
) -> Batch:
    """Apply all operations to a batch, one after the other.

    Args:
      operations: of the pipeline.
      batch: as above.
      key: of this step, the same on every device.
      run_key: of the run.
      axis_name: the mesh axis that shares the batch.
    """
    for operation in operations:
        views = batch.get("views")
        unviewed = {name: value for name, value in batch.items() if name != "views"}
        operation_key, operation_run_key = (
            jax.random.fold_in(k, zlib.crc32(operation.name.encode())) for k in (key, run_key)
        )
        changed = _apply_operation(operation, unviewed, operation_key, operation_run_key, axis_name)
        if views is not None and changed["label"] is not unviewed["label"]:
            raise ValueError(
                "it changes labels and cannot follow views, which share one label; put it before"
            )
        if views is not None and "views" in changed:
            raise ValueError("it makes views, and there are some already; leave out the others")
        if views is not None:  # each view is changed by draws of its own
            changed["views"] = jnp.stack(
                [
                    _apply_operation(
                        operation,
                        unviewed | {"image": view},
                        jax.random.fold_in(operation_key, number),
                        jax.random.fold_in(operation_run_key, number),
                        axis_name,
                    )["image"]
                    for number, view in enumerate(views, start=1)
                ]
            )
        batch = changed
    return batch


def _apply_operation(
    operation: Operation, batch: Batch, key: jax.Array, run_key: jax.Array, axis_name: str | None
) -> Batch:
    asked = {
        name: value
        for name, value in (("key", key), ("run_key", run_key))
        if name in operation.asks
    }
    return operation.function(example_keys(key, len(batch["image"]), axis_name), batch, **asked)


def normalise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Compute (images - mean) / std per channel.

    uint8[B, H, W, C] in 0..255 -> the type of `mean` (float[C], same unit).
    """
    return (images.astype(mean.dtype) - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)


def pixels(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Undo `normalise`: float[B, H, W, C] -> the same in 0..255."""
    return images * std.reshape(1, 1, 1, -1) + mean.reshape(1, 1, 1, -1)
