"""Files that are kept between runs, verified: what data/cache.py and compilation_cache.py build on.

Every file starts with the SHA-256 of the rest and appears in one rename, so that a damaged file, or
one that another process is writing, costs the time to make its content again and nothing else; a
folder that cannot be written likewise.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np

from cnnlab import files

# bytes: JAX's CPU devices share the memory of an array that starts at a multiple, and copy any
# other
ALIGNED = 64


def folder() -> Path:
    """Choose the cache folder: $CNNLAB_CACHE, else $XDG_CACHE_HOME/cnnlab, else ~/.cache/cnnlab;
    for a user without a home, one that ends with this process.
    """
    if chosen := os.environ.get("CNNLAB_CACHE"):
        return files.expanded(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return files.expanded(chosen) / "cnnlab"
    return Path("~/.cache/cnnlab").expanduser() if files.has_home() else Path(_of_this_process())


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


def read(path: Path) -> np.ndarray | None:
    """Read what `write` wrote, aligned; None where there is nothing, or something else."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        digest = file.read(32)
        body = aligned(max(0, os.fstat(file.fileno()).st_size - 32))
        if file.readinto(body.data) == len(body) and hashlib.sha256(body.data).digest() == digest:
            return body
    return None


def write(path: Path, body: np.ndarray) -> None:
    """Write a file under its SHA-256, in one rename; if that is impossible, write nothing."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(body.data).digest())
                file.write(body.data)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
