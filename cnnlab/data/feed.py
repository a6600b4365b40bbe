"""Two ways to feed a step the same batches: resident on the device, or streamed, be it from the
files of a data set or from one file of its decoded images.

A feed gives an `item` per step, and `fetch(data, item)`, a pure function inside the compiled step,
makes it a batch {"image": uint8[B, H, W, C], "label": int32[B], "index": int32[B]}; the index is
the image's place in the split. Resident: `data` are all images, on the device, and the item has
their positions in place of the images. They are flat, uint8[N, H * W * C]: an array that ends in
three channels is spread out to 128 there by TPUs (CIFAR-10, v5e: 617 MB and five times the traffic
of a step). Streaming: `data` is empty and the item is the batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from cnnlab import signals
from cnnlab.data.dataset import Batch, Split
from cnnlab.data.order import batch_positions
from cnnlab.errors import InputError

if TYPE_CHECKING:  # Grain's reader processes import this module, and need no JAX
    import jax

    from cnnlab.augment import Batch as DeviceBatch

RESIDENT_LIMIT = 2 << 30  # bytes of images that `auto` keeps on each device
Rows = np.ndarray | None  # of a batch, int[n]; None: all
# Bytes of batches that wait for the training, at most; but 2 of them, and no more than 16.
# Processes that read hand over parts of a batch, so that many of them keep within it too.
READ_AHEAD = 64 << 20
SHARED_MEMORY = "/dev/shm"  # where processes hand over what they read, on Linux
SEMAPHORES = 1 << 18  # bytes there of a process's semaphores, a page each


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

    `ahead`: bytes of the batches that may wait for the training, where they are streamed.
    """

    data: np.ndarray | tuple[()]
    fetch: Callable[[jax.Array, DeviceBatch], DeviceBatch]
    items: Callable[[int, int], Iterator[Batch]]
    ahead: int = 0


@dataclass(frozen=True)
class ReadAhead:
    """What is read while the training works.

    Attributes:
      workers: processes that read; 0: threads of this one.
      parts: of a batch, that are read apart from each other.
      prefetched: parts that are read before they are asked for, here or in each worker.
      queued: parts of each worker that wait on their way here.
    """

    workers: int
    parts: int
    prefetched: int
    queued: int = 0

    @property
    def waiting(self) -> int:
        """Parts that wait at most.

        On its way out of a worker a part waits twice: in the queue of the worker, and in that of
        the thread that empties it; worker and thread hold one more each, which they cannot put in.
        """
        if not self.workers:
            return self.prefetched
        return self.workers * (self.prefetched + 2 * self.queued + 2)


def read_ahead(batch_size: int, image_bytes: int, workers: int, limit: int) -> ReadAhead:
    """Choose what is read ahead.

    Args:
      batch_size: images of a batch.
      image_bytes: of each.
      workers: processes that read; 0: threads of this one.
      limit: bytes in all.
    """
    fitting = limit // (batch_size * image_bytes)
    if not workers:
        return ReadAhead(0, 1, min(16, max(2, fitting)))
    most = ReadAhead(workers, 1, 2, 2)
    if most.waiting <= fitting:
        return most
    least = ReadAhead(workers, 1, 0, 1)
    # The batch that the parts become is there as well; half is theirs however large that is.
    room = max(limit - batch_size * image_bytes, limit // 2)
    images = max(1, room // (least.waiting * image_bytes))
    return dataclasses.replace(least, parts=-(-batch_size // images))


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


def streaming(split: Split, order: Order, workers: int = 0, num_feeds: int = 1) -> Feed:
    """Feed from the files, through Grain.

    Args:
      split: of which the images of `order.rows` are read, and no others but the first, here.
      order: of the steps.
      workers: processes that read ahead; 0: threads of this one.
      num_feeds: that share the memory for what is read ahead.
    """
    batch_size = order.batch_size if order.rows is None else len(order.rows)
    image_bytes = math.prod(split.image_shape)
    limit = min(READ_AHEAD, _shared_memory(workers * num_feeds)) if workers else READ_AHEAD
    ahead = read_ahead(batch_size, image_bytes, workers, limit // num_feeds)
    images = ahead.waiting * -(-batch_size // ahead.parts) + (batch_size if ahead.parts > 1 else 0)
    _import_all(split, order)

    def items(first: int, last: int) -> Iterator[Batch]:
        # Positions in MapDataset.range are parts of steps: Grain may read ahead and out of order,
        # the order stays ours.
        read = functools.partial(_read_part, split, order, ahead.parts)
        parts = range(first * ahead.parts, last * ahead.parts)
        with contextlib.closing(_grain(parts, read, ahead)) as read_parts:
            while batch := list(islice(read_parts, ahead.parts)):
                yield batch[0] if ahead.parts == 1 else _joined(batch)

    return Feed((), as_read, items, images * image_bytes)


def _shared_memory(workers: int) -> int:
    """Return the bytes in which processes that read can hand over batches: half of what is free, as
    a batch can need more than its share.

    Raises:
      InputError: there is no room for the processes themselves.
    """
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:  # another system
        return READ_AHEAD
    free = status.f_bavail * status.f_frsize
    if free < 2 * workers * SEMAPHORES:
        raise InputError(
            f"--workers {workers}: the processes that read need "
            f"{2 * workers * SEMAPHORES / 1e6:.1f} MB of shared memory at least, and "
            f"{SHARED_MEMORY} has {free / 1e6:.1f} MB free; take --workers 0 (threads), or enlarge "
            "it (docker run --shm-size 1g)"
        )
    return free // 2 - workers * SEMAPHORES


def _import_all(split: Split, order: Order) -> None:
    """Import what reading takes, by reading an image, before there are other threads.

    While TFDS and Grain are imported, `import` is another function in all threads (etils'
    `lazy_imports`): one that imports something then, as that of a save does, gets a module where it
    asked for a function.
    """
    import grain  # noqa: F401

    split.read(order.positions[:1])


def _joined(parts: Sequence[Batch]) -> Batch:
    # np.asarray: those of another process are views of memory that it shares
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


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

    return Feed(feeds[0].data, feeds[0].fetch, items, sum(feed.ahead for feed in feeds))


def stacked_batches(of_seeds: Sequence[Iterator[Batch]]) -> Iterator[Batch]:
    """Stack the batches of several seeds, equally many of each, along a leading axis."""
    for batches in zip(*of_seeds, strict=True):
        yield {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _read_part(split: Split, order: Order, num_parts: int, place: int) -> Batch:
    """Read a part of a step's batch; the parts of all steps are counted through."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        # Readers take what the training leaves. As its equals they hold up one CPU device while the
        # others wait for that one to agree on the gradient: 0.66 of the images a second of the step
        # alone, in place of 0.74.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    step, part = divmod(place, num_parts)
    chosen = np.array_split(order.chosen(step), num_parts)[part]
    return _as_item(split.read(chosen), order, chosen)


def _as_item(batch: Batch, order: Order, chosen: np.ndarray) -> Batch:
    """Give a batch that has been read its labels as they are taught, and its index."""
    return batch | {"label": order.labels[chosen], "index": chosen.astype(np.int32)}


def _grain(
    places: range, read: Callable[[int], Batch], ahead: ReadAhead
) -> Generator[Batch, None, None]:
    if not places:
        return
    import grain

    dataset = grain.MapDataset.range(places.start, places.stop).map(read)
    if ahead.workers:
        from absl import flags

        # Grain's worker processes read absl flags, which only absl's own main parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # A run that is stopped leaves batches unread; the tracker that removes them need not say so
        os.environ.setdefault(
            "PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker"
        )
        threads = min(1, ahead.prefetched)
        iterator = iter(
            dataset.to_iter_dataset(
                grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead.prefetched)
            ).mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=ahead.workers, per_worker_buffer_size=ahead.queued
                ),
                worker_init_fn=_start_reader,
            )
        )
    else:
        threads = max(1, min(ahead.prefetched, (os.cpu_count() or 1) // 2))
        iterator = iter(
            dataset.to_iter_dataset(
                grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead.prefetched)
            )
        )
    try:
        yield from iterator
    finally:
        iterator.close()


def _start_reader(index: int, count: int) -> None:
    """Have a reader process end with its parent, and no sooner: signals are ignored.

    A terminal sends Ctrl-C to the whole group; the run still needs its readers for the step it is
    in. A parent that is killed closes nothing, and Grain's readers would wait for it forever.
    """
    del index, count
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    for number in signals.NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
