"""Two ways to feed a step the same batches: resident on the device, or streamed.

A feed gives an `item` per step, and `fetch(data, item)`, a pure function inside the compiled step,
makes it a batch {"image": uint8[B, H, W, C], "label": int32[B], "index": int32[B]}; the index is
the image's place in the split. Resident: `data` are all images, on the device, and the item has
their positions in place of the images. They are flat, uint8[N, H * W * C]: an array that ends in
three channels is spread out to 128 there by TPUs (CIFAR-10, v5e: 617 MB and five times the traffic
of a step). Streaming: `data` is empty and the item is the batch.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlab.data.dataset import Split
from cnnlab.data.order import batch_positions

RESIDENT_LIMIT = 2 << 30  # bytes of images that `auto` keeps on each device
ALL = slice(None)
Rows = slice | np.ndarray  # of a batch
READ_AHEAD = (
    64 << 20
)  # bytes of batches that wait for the training, at most; but 2 of them, and no more than 16


def gathered(image_shape: tuple[int, ...], data: Any, item: Any) -> dict[str, Any]:
    """`fetch` of the resident feed."""
    images = data[item["image"]]
    return item | {
        "image": images.reshape(*images.shape[:-1], *image_shape),
        "index": item["image"],
    }


def as_read(data: Any, item: Any) -> dict[str, Any]:
    """`fetch` of the streaming feed."""
    del data
    return item


@dataclass(frozen=True)
class Feed:
    """Training batches by step: `data` (numpy, to be placed once), `fetch`, and `items(first_step,
    last_step)`.
    """

    data: Any
    fetch: Callable[[Any, Any], dict[str, Any]]
    items: Callable[[int, int], Iterator[Any]]


def resident(
    images: np.ndarray,
    labels: np.ndarray,
    positions: np.ndarray,
    seed: int,
    batch_size: int,
    rows: Rows = ALL,
) -> Feed:
    """Feed from memory.

    Args:
      images: uint8[N, H, W, C], all of the split.
      labels: int32[N], as they are taught.
      positions: int[n], which of them are trained on.
      seed: of the order.
      batch_size: images per step.
      rows: those of each batch that this process feeds.
    """
    own = positions.astype(np.int32)

    def items(first: int, last: int) -> Iterator[dict[str, np.ndarray]]:
        for step in range(first, last):
            chosen = _choice(own, seed, batch_size, rows, step)
            yield {"image": chosen, "label": labels[chosen]}

    return Feed(
        images.reshape(len(images), -1), functools.partial(gathered, images.shape[1:]), items
    )


def streaming(
    split: Split,
    labels: np.ndarray,
    positions: np.ndarray,
    seed: int,
    batch_size: int,
    workers: int = 0,
    rows: Rows = ALL,
) -> Feed:
    """Feed from the files, through Grain: read ahead by threads, or by `workers` processes.

    Args as for `resident`; the images are read from `split`, those of `rows` only.
    """

    def items(first: int, last: int) -> Iterator[dict[str, np.ndarray]]:
        # Positions in MapDataset.range are steps: Grain may read ahead and out of order, the order
        # stays ours.
        read = functools.partial(_read_step, split, labels, positions, seed, batch_size, rows)
        ahead = READ_AHEAD // (batch_size * math.prod(split.image_shape))
        yield from _grain(range(first, last), read, workers, min(16, max(2, ahead)))

    return Feed((), as_read, items)


def together(feeds: Sequence[Feed]) -> Feed:
    """The items of several feeds over the same data, stacked: a leading axis for the seeds that
    they belong to.
    """
    import jax  # not above: Grain's reader processes import this module, and need no JAX

    def items(first: int, last: int) -> Iterator[Any]:
        for each in zip(*(feed.items(first, last) for feed in feeds), strict=True):
            yield jax.tree.map(lambda *parts: np.stack(parts), *each)

    return Feed(feeds[0].data, feeds[0].fetch, items)


def _choice(positions: np.ndarray, seed: int, batch_size: int, rows: Rows, step: int) -> np.ndarray:
    """Where the images of these rows of a step's batch are in the data set."""
    return positions[batch_positions(seed, step, len(positions), batch_size)[rows]]


def _read_step(
    split: Split,
    labels: np.ndarray,
    positions: np.ndarray,
    seed: int,
    batch_size: int,
    rows: Rows,
    step: int,
) -> dict[str, np.ndarray]:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        # Readers take what the training leaves. As its equals they hold up one CPU device while the
        # others wait for that one to agree on the gradient: 0.66 of the images a second of the step
        # alone, in place of 0.74.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    chosen = _choice(positions, seed, batch_size, rows, step)
    return split.read(chosen) | {"label": labels[chosen], "index": chosen.astype(np.int32)}


def _grain(steps: range, read: Callable[[int], Any], workers: int, ahead: int) -> Iterator[Any]:
    if not steps:
        return
    import grain

    dataset = grain.MapDataset.range(steps.start, steps.stop).map(read)
    if workers:
        from absl import flags

        if (
            not flags.FLAGS.is_parsed()
        ):  # Grain's worker processes read absl flags, which only absl's own main parses
            flags.FLAGS.mark_as_parsed()
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        iterator = iter(
            dataset.to_iter_dataset(options).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
                worker_init_fn=_leave_signals_to_the_parent,
            )
        )
    else:
        threads = max(1, min(ahead, (os.cpu_count() or 1) // 2))
        iterator = iter(
            dataset.to_iter_dataset(
                grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
            )
        )
    try:
        yield from iterator
    finally:
        iterator.close()


def _leave_signals_to_the_parent(index: int, count: int) -> None:
    """A terminal sends Ctrl-C to the whole group; the run still needs its readers for the step it
    is in.
    """
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def in_order(
    read: Callable[[np.ndarray], dict[str, np.ndarray]],
    positions: Sequence[int] | np.ndarray,
    batch_size: int,
    rows: Rows = ALL,
) -> Iterator[dict]:
    """Batches for evaluation, in order, every image once; the last is padded with its first image
    under a mask.

    Args:
      read: positions -> {"image", "label"}.
      positions: int[n].
      batch_size: B, the same for every batch, so that one compilation serves.
      rows: those of each batch that this process feeds.

    Yields:
      {"image": uint8[B, H, W, C], "label": int32[B], "mask": bool[B]}.
    """
    positions = np.asarray(positions)
    for start in range(0, len(positions), batch_size):
        part = positions[start : start + batch_size]
        padded = np.concatenate([part, np.full(batch_size - len(part), part[0])])
        yield {**read(padded[rows]), "mask": (np.arange(batch_size) < len(part))[rows]}
