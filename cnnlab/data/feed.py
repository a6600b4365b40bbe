"""Two ways to feed a step the same batches: resident on the device, or streamed.

A feed gives an `item` per step, and `fetch(data, item)`, a pure function inside the compiled step,
makes it a batch {"image": uint8[B, H, W, C], "label": int32[B], "index": int32[B]}; the index is
the image's place in the split. Resident: `data` are all images, on the device, and the item has
their positions in place of the images. They are flat, uint8[N, H * W * C]: an array that ends in
three channels is spread out to 128 there by TPUs (CIFAR-10, v5e: 617 MB and five times the traffic
of a step). Streaming: `data` is empty and the item is the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cnnlab.data.dataset import Batch, Split
from cnnlab.data.order import batch_positions

if TYPE_CHECKING:  # Grain's reader processes import this module, and need no JAX
    import jax

    from cnnlab.augment import Batch as DeviceBatch

RESIDENT_LIMIT = 2 << 30  # bytes of images that `auto` keeps on each device
Rows = np.ndarray | None  # of a batch, int[n]; None: all
# Bytes of batches that wait for the training, at most; but 2 of them, and no more than 16
READ_AHEAD = 64 << 20


def gathered(image_shape: tuple[int, ...], data: jax.Array, item: DeviceBatch) -> DeviceBatch:
    """Gather the images of an item from the resident data: `fetch` of the resident feed."""
    images = data[item["image"]]
    return item | {
        "image": images.reshape(*images.shape[:-1], *image_shape),
        "index": item["image"],
    }


def as_read(data: object, item: DeviceBatch) -> DeviceBatch:
    """Return the item, which is a batch already: `fetch` of the streaming feed."""
    del data
    return item


@dataclass(frozen=True)
class Feed:
    """Training batches by step: `data` (numpy, to be placed once), `fetch`, and `items(first_step,
    last_step)`.
    """

    data: np.ndarray | tuple[()]
    fetch: Callable[[jax.Array, DeviceBatch], DeviceBatch]
    items: Callable[[int, int], Iterator[Batch]]


@dataclass(frozen=True)
class Order:
    """Which images a step trains on, and what they are taught as.

    Attributes:
      labels: int32[N], as they are taught.
      positions: int[n], which of the images are trained on.
      seed: of the order.
      batch_size: images per step.
      rows: those of each batch that this process feeds.
    """

    labels: np.ndarray
    positions: np.ndarray
    seed: int
    batch_size: int
    rows: Rows = None

    def chosen(self, step: int) -> np.ndarray:
        """Return where the images of these rows of a step's batch are in the data set: int[B]."""
        order = batch_positions(self.seed, step, len(self.positions), self.batch_size)
        return self.positions[order if self.rows is None else order[self.rows]]


def resident(images: np.ndarray, order: Order) -> Feed:
    """Feed from memory.

    Args:
      images: uint8[N, H, W, C], all of the split.
      order: of the steps.
    """
    order = dataclasses.replace(order, positions=order.positions.astype(np.int32))

    def items(first: int, last: int) -> Iterator[Batch]:
        for step in range(first, last):
            chosen = order.chosen(step)
            yield {"image": chosen, "label": order.labels[chosen]}

    return Feed(
        images.reshape(len(images), -1), functools.partial(gathered, images.shape[1:]), items
    )


def streaming(split: Split, order: Order, workers: int = 0) -> Feed:
    """Feed from the files, through Grain.

    Args:
      split: of which the images of `order.rows` are read, and no others.
      order: of the steps.
      workers: processes that read ahead; 0: threads of this one.
    """

    def items(first: int, last: int) -> Iterator[Batch]:
        # Positions in MapDataset.range are steps: Grain may read ahead and out of order, the order
        # stays ours.
        read = functools.partial(_read_step, split, order)
        ahead = READ_AHEAD // (order.batch_size * math.prod(split.image_shape))
        yield from _grain(range(first, last), read, workers, min(16, max(2, ahead)))

    return Feed((), as_read, items)


def blank(
    image_shape: tuple[int, ...], num_images: int, batch_size: int, is_resident: bool
) -> Feed:
    """Build a feed of black images that take no memory, for a step that is compiled without data.

    Args:
      image_shape: (H, W, C).
      num_images: of the split.
      batch_size: images per step.
      is_resident: feed as `resident` does; otherwise as `streaming`.
    """
    images = np.broadcast_to(np.uint8(0), (num_images, *image_shape))
    order = Order(np.zeros(num_images, np.int32), np.arange(num_images), 0, batch_size)
    if is_resident:
        return resident(images, order)

    def items(first: int, last: int) -> Iterator[Batch]:
        for step in range(first, last):
            batch = {"image": np.broadcast_to(images[0], (batch_size, *image_shape))}
            yield _as_item(batch, order, order.chosen(step))

    return Feed((), as_read, items)


def stacked(feeds: Sequence[Feed]) -> Feed:
    """Stack the items of several feeds over the same data.

    Items get a leading axis for the seeds that the feeds belong to.
    """
    import jax  # not above: Grain's reader processes import this module, and need no JAX

    def items(first: int, last: int) -> Iterator[Batch]:
        for of_feeds in zip(*(feed.items(first, last) for feed in feeds), strict=True):
            yield jax.tree.map(lambda *parts: np.stack(parts), *of_feeds)

    return Feed(feeds[0].data, feeds[0].fetch, items)


def _read_step(split: Split, order: Order, step: int) -> Batch:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        # Readers take what the training leaves. As its equals they hold up one CPU device while the
        # others wait for that one to agree on the gradient: 0.66 of the images a second of the step
        # alone, in place of 0.74.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    chosen = order.chosen(step)
    return _as_item(split.read(chosen), order, chosen)


def _as_item(batch: Batch, order: Order, chosen: np.ndarray) -> Batch:
    """Give a batch that has been read its labels as they are taught, and its index."""
    return batch | {"label": order.labels[chosen], "index": chosen.astype(np.int32)}


def _grain(steps: range, read: Callable[[int], Batch], workers: int, ahead: int) -> Iterator[Batch]:
    if not steps:
        return
    import grain

    dataset = grain.MapDataset.range(steps.start, steps.stop).map(read)
    if workers:
        from absl import flags

        # Grain's worker processes read absl flags, which only absl's own main parses.
        if not flags.FLAGS.is_parsed():
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
    """Ignore SIGINT and SIGTERM in a reader process.

    A terminal sends Ctrl-C to the whole group; the run still needs its readers for the step it is
    in.
    """
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def in_order(
    read: Callable[[np.ndarray], Batch],
    positions: Sequence[int] | np.ndarray,
    batch_size: int,
    rows: Rows = None,
) -> Iterator[Batch]:
    """Yield batches for evaluation, in order, every image once.

    The last batch is padded with its first image under a mask.

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
        mask = np.arange(batch_size) < len(part)
        if rows is not None:
            padded = padded[rows]
            mask = mask[rows]
        yield {**read(padded), "mask": mask}
