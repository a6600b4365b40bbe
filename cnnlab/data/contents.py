"""What is known of every image of a split: its labels, its mean and deviation, its fingerprint.

`summary` and `decoded` go through all of a split once, and keep what they found in a cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cnnlab.data import cache
from cnnlab.data.dataset import Arrays, Batch, Split

# Goes through the reads of a pass, and shows how far it is: `iter`, or what `Console.track` gives.
Progress: TypeAlias = Callable[[Sequence[int]], Iterator[int]]

# Images per read in a pass over a split: batched reads take 0.4 of the time of single ones.
READ_AT_ONCE = 512


@dataclass(frozen=True)
class Summary:
    """What is known of every image of a split without holding them.

    Attributes:
      labels: int32[N].
      sums, squares: int64[N, C], exact sums over pixels of values and of their squares.
      hashes: uint8[N, 16], of the pixels of each.
      pixels: pixels per image and channel.
    """

    labels: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    hashes: np.ndarray
    pixels: int

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
        """Hash the pixels and labels of all images, in order, with SHA-256.

        Another data set under the same name is thus noticed.
        """
        parts = [np.ascontiguousarray(array).tobytes() for array in (self.labels, self.hashes)]
        return hashlib.sha256(b"".join(parts)).hexdigest()


@dataclass(frozen=True)
class Contents:
    """What is in a data set.

    Attributes:
      images: uint8[N, H, W, C], the training split in memory; None where it is streamed.
      train, test: what is known of the splits.
    """

    images: np.ndarray | None
    train: Summary
    test: Summary

    def digest(self) -> str:
        """Hash the pixels and labels of both splits with SHA-256."""
        return hashlib.sha256((self.train.digest() + self.test.digest()).encode()).hexdigest()


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
        else cache.arrays(f"{split.fingerprint[:24]}-summary2", compute)
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


def _summary(split: Split, arrays: dict[str, np.ndarray]) -> Summary:
    facts = {name: arrays[name] for name in ("labels", "sums", "squares", "hashes")}
    return Summary(**facts, pixels=split.image_shape[0] * split.image_shape[1])


def _passes(split: Split, progress: Progress) -> Iterator[Batch]:
    for start in progress(range(0, len(split), READ_AT_ONCE)):
        yield split.read(range(start, min(start + READ_AT_ONCE, len(split))))


def _sums(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    images = part["image"].astype(np.int64)
    hashes = [hashlib.blake2b(image.data, digest_size=16).digest() for image in part["image"]]
    return {
        "labels": part["label"],
        "sums": images.sum((1, 2)),
        "squares": (images**2).sum((1, 2)),
        "hashes": np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16),
    }


def _concatenate(parts: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    collected = list(parts)
    return {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
