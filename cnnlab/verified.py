"""Files that are kept between runs, verified: what data/cache.py and compilation_cache.py build on.

Every file starts with the SHA-256 of its name and the rest, and appears in one rename, so that a
damaged file, or one that another process is writing, costs the time to make its content again and
nothing else; a folder that cannot be written likewise. What the folder lacks is looked for in the
bucket that machines share, if there is one, and what is made is put there.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cnnlab import files
from cnnlab.bucket import Bucket

# bytes: JAX's CPU devices share the memory of an array that starts at a multiple, and copy any
# other
ALIGNED = 64

_bucket: Bucket | None = None
_shared: tuple[str, Path] | None = None  # where that is, and the folder of this machine


def folder() -> Path:
    """Choose the cache folder: $CNNLAB_CACHE, else $XDG_CACHE_HOME/cnnlab, else ~/.cache/cnnlab;
    for a user without a home, one that ends with this process.
    """
    if chosen := os.environ.get("CNNLAB_CACHE"):
        return files.expanded(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return files.expanded(chosen) / "cnnlab"
    return files.expanded("~/.cache/cnnlab") if files.has_home() else Path(_of_this_process())


@functools.cache
def _of_this_process() -> str:
    folder = tempfile.TemporaryDirectory(prefix="cnnlab-")
    atexit.register(folder.cleanup)
    return folder.name


def aligned(size: int) -> np.ndarray:
    """Allocate uint8[size], all zero, from the start of a page of memory.

    All pages are requested at once where the system supports that: numpy's, faulted in as huge
    pages, took 0.02 to 0.4 s for CIFAR-10, these 0.07 s.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    return np.frombuffer(mmap.mmap(-1, max(size, 1), flags=flags), np.uint8)[:size]


def share(location: str | None) -> None:
    """Share the cache folder's files with other machines from now on, or no longer (None).

    Args:
      location: gs://BUCKET/FOLDER.

    Raises:
      InputError: as `Bucket`.
    """
    global _bucket, _shared
    shared = None if location is None else (location, folder())
    if shared != _shared:
        _bucket = None if shared is None else Bucket(*shared)
        _shared = shared


def is_shared() -> bool:
    """Return whether the cache folder's files are shared with other machines."""
    return _bucket is not None


def holds(path: Path) -> bool:
    """Return whether the other machines have a file of the cache folder."""
    return _bucket is not None and _bucket.holds(path)


def fetch(path: Path, is_sound: Callable[[Path], bool]) -> bool:
    """Fetch a file of the cache folder from the other machines, as `Bucket.fetch`."""
    return _bucket is not None and _bucket.fetch(path, is_sound)


def publish(path: Path) -> None:
    """Let the other machines have a file of the cache folder, which is sound."""
    if _bucket is not None:
        _bucket.publish(path)


def read(path: Path) -> np.ndarray | None:
    """Read what `write` wrote, aligned; None where there is nothing, or something else."""
    body = _body(path, path.name)
    if body is not None:
        publish(path)
    elif fetch(path, lambda new: _body(new, path.name) is not None):
        body = _body(path, path.name)
    return body


def _body(path: Path, name: str) -> np.ndarray | None:
    """Read what `write` wrote under a name."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        digest = file.read(32)
        body = aligned(max(0, os.fstat(file.fileno()).st_size - 32))
        if file.readinto(body.data) == len(body) and _digest(name, body) == digest:
            return body
    return None


def _digest(name: str, body: np.ndarray) -> bytes:
    sha = hashlib.sha256(name.encode())
    sha.update(body.data)
    return sha.digest()


def write(path: Path, body: np.ndarray) -> None:
    """Write a file under its SHA-256, in one rename; if that is impossible, write nothing."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.temporary(path) as new:
            with new.open("wb") as file:
                file.write(_digest(path.name, body))
                file.write(body.data)
            new.replace(path)
        publish(path)
