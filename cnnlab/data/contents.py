"""What is known of every image of a split: its labels, its mean and deviation, its fingerprint.

`summary`, `decoded` and `on_disk` go through all of a split once, and keep what they found in a
cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cnnlab import verified
from cnnlab.data import cache, decoded_file
from cnnlab.data.dataset import Arrays, Batch, Split
from cnnlab.errors import InputError

# Goes through the reads of a pass, and shows how far it is: `iter`, or what `Console.track` gives.
Progress: TypeAlias = Callable[[Sequence[int]], Iterator[int]]

# Images per read in a pass over a split: batched reads take 0.4 of the time of single ones. Of
# large images as many as fit into READ_BYTES when they are decoded.
READ_AT_ONCE = 512
READ_BYTES = 16 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Summary:
    """What is known of every image of a split without holding them.

    Attributes:
      labels: int32[N].
      sums, squares: int64[N, C], exact sums over pixels of values and of their squares.
      hashes: uint8[N, 16], of the pixels of each.
      image_shape: (H, W, C) of each.
    """

    labels: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    hashes: np.ndarray
    image_shape: tuple[int, int, int]

    @property
    def pixels(self) -> int:
        """Pixels per image and channel."""
        return self.image_shape[0] * self.image_shape[1]

    def mean_std(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the mean and standard deviation per channel over the images at `positions`.

        Both are float64[C] in 0..255.
        """
        n = len(positions) * self.pixels
        mean = self.sums[positions].sum(0) / n
        variance = self.squares[positions].sum(0) / n - mean**2
        # A constant channel must not divide by zero
        return mean, np.sqrt(np.maximum(variance, 1.0))

    def digest(self) -> str:
        """Hash the shape, the pixels and the labels of all images, in order, with SHA-256.

        Another data set under the same name is thus noticed.
        """
        shape = json.dumps([len(self.labels), *self.image_shape]).encode()
        parts = [np.ascontiguousarray(array).tobytes() for array in (self.labels, self.hashes)]
        return hashlib.sha256(b"".join([shape, *parts])).hexdigest()


@dataclass(frozen=True)
class Contents:
    """What is in a data set.

    Attributes:
      images: uint8[N, H, W, C], the training split in memory; None where it is streamed.
      train, test: what is known of the splits.
      split: the training split, read from its file of decoded images; None where it has none.
    """

    images: np.ndarray | None
    train: Summary
    test: Summary
    split: Split | None = None

    def digest(self, class_names: Sequence[str]) -> str:
        """Hash the images and labels of both splits, and what the classes are called, with
        SHA-256.
        """
        known = [self.train.digest(), self.test.digest(), *class_names]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def summary(split: Split, progress: Progress = iter) -> Summary:
    """Collect labels and pixel sums of every image: one pass over the split, then from the cache.

    Arrays in memory are not cached, and neither is a split without a fingerprint.

    Args:
      split: what to go through.
      progress: wraps the sequence of reads, to show how far it is.
    """

    def compute() -> dict[str, np.ndarray]:
        return _concatenate(_sums(part) for part in _passes(split, progress))

    arrays = (
        compute()
        if isinstance(split.records, Arrays) or not split.fingerprint
        else cache.arrays(_summary_name(split), compute)
    )
    return _summary(split, arrays)


def decoded(split: Split, progress: Progress = iter) -> tuple[np.ndarray, Summary]:
    """Decode all images of a split, uint8[N, H, W, C], and its summary: once, then from the cache.

    Arrays in memory that have the split's shape are returned as they are.
    """

    def compute() -> dict[str, np.ndarray]:
        return _concatenate(
            {"images": part["image"], **_sums(part)} for part in _passes(split, progress)
        )

    if isinstance(split.records, Arrays) and split.records.fit(split.image_shape):
        return split.records.images, summary(split, progress)
    arrays = cache.arrays(f"{split.fingerprint[:24]}-images2", compute)
    return arrays["images"], _summary(split, arrays)


def on_disk(
    split: Split,
    limit: float | None,
    progress: Progress = iter,
    say: Callable[[str], object] = print,
) -> tuple[Split, Summary] | None:
    """Decode all images of a split into a file of the cache folder, once, and read them from there.

    Args:
      split: what to decode.
      limit: GiB that the file may take, and no more than half of what is free on that disk; None:
        it is wanted in any case.
      progress: wraps the sequence of reads, to show how far it is.
      say: is called with a line where another process has to be waited for.

    Returns:
      The split with the file as its records, and its summary. None where the file would be too
      large or cannot be written, and where the images are in memory anyway.

    Raises:
      InputError: it is wanted in any case, and cannot be had; or an image that cannot be decoded.
    """
    target = decoded_file.path(f"{split.fingerprint[:24]}-images2")
    size = len(split) * math.prod(split.image_shape)
    if isinstance(split.records, Arrays):
        why = "they are arrays in memory already"
    else:
        with decoded_file.locked(target, say) as why:
            found = None if why else _found(split, target, progress)
            if found is None and not (why := why or _no_room(target, size, limit)):
                found = _fetched(split, target, progress) or _written(split, target, progress)
                why = "" if found else "that folder cannot be written, or its disk is full"
        if found:
            verified.publish(target)
            return found
    if limit is None:
        raise InputError(
            f"the decoded images of {split.name}, {size / GIB:.1f} GiB, cannot be kept in "
            f"{target.parent}: {why}; take --feed streaming, or another $CNNLAB_CACHE"
        )
    return None


def _no_room(target: Path, size: int, limit: float | None) -> str:
    """Say why a file of decoded images is not to be written; empty where it is."""
    free = decoded_file.free(target)
    if limit is None:
        return "" if size < free else f"{free / GIB:.1f} GiB are free there"
    return "" if size <= min(limit * GIB, free / 2) else "it is too large"


def _found(split: Split, target: Path, progress: Progress) -> tuple[Split, Summary] | None:
    """Return what `on_disk` does if the file is there and sound."""
    if not target.is_file():
        return None
    facts = summary(split, progress)
    rows = _rows(split, target, facts)
    return (dataclasses.replace(split, records=rows), facts) if rows.is_sound() else None


def _fetched(split: Split, target: Path, progress: Progress) -> tuple[Split, Summary] | None:
    """Return what `on_disk` does if another machine has the file, and every image in it is one of
    the split.
    """
    if not verified.holds(target):
        return None
    facts = summary(split, progress)
    rows = _rows(split, target, facts)
    fetched = verified.fetch(
        target, lambda new: dataclasses.replace(rows, path=new).is_sound(len(rows))
    )
    return (dataclasses.replace(split, records=rows), facts) if fetched else None


def _written(split: Split, target: Path, progress: Progress) -> tuple[Split, Summary] | None:
    """Decode a split into a file; return what `on_disk` does, None where that is impossible."""
    parts = []

    def images() -> Iterator[np.ndarray]:
        for part in _passes(split, progress):
            parts.append(_sums(part))
            yield part["image"]

    if not decoded_file.write(target, images()):
        return None
    arrays = cache.arrays(_summary_name(split), lambda: _concatenate(iter(parts)))
    facts = _summary(split, arrays)
    return dataclasses.replace(split, records=_rows(split, target, facts)), facts


def _rows(split: Split, target: Path, facts: Summary) -> decoded_file.Rows:
    return decoded_file.Rows(target, split.image_shape, facts.labels, facts.hashes, split.records)


def _summary_name(split: Split) -> str:
    return f"{split.fingerprint[:24]}-summary2"


def _summary(split: Split, arrays: dict[str, np.ndarray]) -> Summary:
    facts = {name: arrays[name] for name in ("labels", "sums", "squares", "hashes")}
    return Summary(**facts, image_shape=split.image_shape)


def _passes(split: Split, progress: Progress) -> Iterator[Batch]:
    at_once = min(READ_AT_ONCE, max(1, READ_BYTES // math.prod(split.image_shape)))
    for start in progress(range(0, len(split), at_once)):
        yield split.read(range(start, min(start + at_once, len(split))))


def _sums(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    images = part["image"]
    # 255 squared fits into 16 bits; a sum over an image does not.
    squares = np.square(images, dtype=np.uint16).sum((1, 2), dtype=np.int64)
    hashes = [decoded_file.image_hash(image) for image in images]
    return {
        "labels": part["label"],
        "sums": images.sum((1, 2), dtype=np.int64),
        "squares": squares,
        "hashes": np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16),
    }


def _concatenate(parts: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    collected = list(parts)
    return {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
