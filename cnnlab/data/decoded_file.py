"""A file of decoded images in the cache folder, for splits that memory cannot hold.

The file is the images of a split one after the other, uint8[N, H * W * C], and nothing else. It is
written in pieces under a lock and appears in one rename, so a process that is killed leaves no half
file under its name. Nobody reads all of it to verify it: an image is compared with its hash when it
is read, and a damaged one is decoded again from the data set. So the file may be deleted at any
time.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnlab import files, verified
from cnnlab.data.dataset import Example, Examples
from cnnlab.data.image import fit
from cnnlab.errors import InputError

SAMPLE = 16  # images that are compared with their hashes when a file is opened


def image_hash(image: np.ndarray | bytes) -> bytes:
    """Hash the pixels of an image: 16 bytes."""
    data = image if isinstance(image, bytes) else np.ascontiguousarray(image).data
    return hashlib.blake2b(data, digest_size=16).digest()


@dataclass(frozen=True)
class Rows:
    """The images of a split in a file, read like the records that they were decoded from. It holds
    no open file, so reader processes can have it.

    Attributes:
      path: of the file.
      image_shape: (H, W, C).
      labels: int32[N].
      hashes: uint8[N, 16], of the pixels of each image.
      source: what they were decoded from, for those that the file does not hold.
    """

    path: Path
    image_shape: tuple[int, int, int]
    labels: np.ndarray
    hashes: np.ndarray
    source: Examples

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def row_bytes(self) -> int:
        """Bytes of an image."""
        return math.prod(self.image_shape)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self) * self.row_bytes

    def __getitems__(self, positions: Sequence[int]) -> list[Example]:
        with self._opened() as read:
            return [
                {"image": self._image(read(p), p), "label": int(self.labels[p])} for p in positions
            ]

    def is_sound(self, count: int = SAMPLE) -> bool:
        """Return whether the file is complete and `count` of its images are those of the split."""
        sample = np.linspace(0, len(self) - 1, min(count, len(self))).astype(int).tolist()
        with contextlib.suppress(OSError), self._opened() as read:
            return self.path.stat().st_size == self.size and all(
                self._is_image(read(p), p) for p in sample
            )
        return False

    def _image(self, row: bytes, position: int) -> np.ndarray:
        if self._is_image(row, position):
            return np.frombuffer(row, np.uint8).reshape(self.image_shape)
        (example,) = self.source.__getitems__([position])
        return fit(example["image"], self.image_shape)

    def _is_image(self, row: bytes, position: int) -> bool:
        return image_hash(row) == self.hashes[position].tobytes()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Callable[[int], bytes]]:
        """Yield what reads the row at a position; nothing where the file is not there."""
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except OSError:
            yield lambda position: b""
            return
        try:
            yield lambda position: self._row(handle, position)
        finally:
            os.close(handle)

    def _row(self, handle: int, position: int) -> bytes:
        # Not through a memory map: a file that another process cuts short, or a damaged disk, would
        # end this process with SIGBUS, and the pages would count as its memory.
        with contextlib.suppress(OSError):
            return os.pread(handle, self.row_bytes, position * self.row_bytes)
        return b""


def path(name: str) -> Path:
    """Return where the decoded images of a split are, or would be."""
    return verified.folder() / f"{name}.rows"


@contextlib.contextmanager
def locked(target: Path, say: Callable[[str], object]) -> Iterator[str]:
    """Hold the lock of a file of decoded images, waiting for a process that writes it; yield why
    that is impossible, empty where it is held.
    """

    def waiting() -> None:
        say(f"waiting for another process that decodes into {target}")

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = files.lock(target.with_suffix(".lock"), waiting)
    except OSError:
        yield "that folder cannot be written"
        return
    except InputError as error:
        yield str(error)
        return
    with file or contextlib.nullcontext():
        _remove(_partial(target))  # of a process that was killed
        yield ""


def free(target: Path) -> int:
    """Return the free bytes of the disk that a file is to be written to."""
    return shutil.disk_usage(target.parent).free


def write(target: Path, parts: Iterable[np.ndarray]) -> bool:
    """Write images to a file; the caller holds its lock.

    Args:
      target: of the file.
      parts: uint8[n, H, W, C], in order.

    Returns:
      Whether that succeeded; if not, as on a full disk, there is no file.
    """
    partial = _partial(target)
    try:
        with partial.open("wb") as file:
            for part in parts:
                file.write(np.ascontiguousarray(part).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError:
        return False
    finally:
        _remove(partial)
    return True


def _partial(target: Path) -> Path:
    return target.with_suffix(".partial")


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
