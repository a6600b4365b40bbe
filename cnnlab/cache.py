"""What is kept between runs: decoded images, facts about data sets, compiled programs.

Every file starts with the SHA-256 of the rest and appears in one rename, so that a damaged file, or one that another
process is writing, costs the time to make its content again and nothing else; a folder that cannot be written likewise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

ALIGNED = 64  # bytes: JAX's CPU devices share the memory of an array that starts at a multiple, and copy any other
HEADER = 16 * ALIGNED  # bytes of a file of arrays that say what they are
PROGRAMS_LIMIT = 256 << 20  # bytes of compiled programs; a configuration has some 300 KB


def folder() -> Path:
    """$CNNLAB_CACHE, else $XDG_CACHE_HOME/cnnlab, else ~/.cache/cnnlab."""
    if own := os.environ.get("CNNLAB_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cnnlab"


def arrays(name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from the cache, or computed and put there.

    Args:
      name: of the file; whatever the arrays depend on must be in it.
      compute: gives a few named arrays of numbers or strings.

    Returns:
      The same arrays; each starts at a multiple of 64 bytes in memory.
    """
    path = folder() / f"{name}.arrays"
    body = _read(path)
    if body is None:
        body = _packed(compute())
        _write(path, body)
    return _unpacked(body)


def keep_compilations() -> None:
    """Have JAX keep what it compiles, so that the same run starts without compiling; to be called before it does.

    $JAX_COMPILATION_CACHE_DIR, where it is set, is left to JAX as it is.
    """
    import jax
    from jax._src import compilation_cache

    path = folder() / "xla"
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # XLA's own files, which nothing verifies
    # JAX's own files are written in place, warn at every start once one is damaged, and are never written again.
    compilation_cache._cache, compilation_cache._cache_initialized = _Programs(path), True


class _Programs:
    """Compiled programs by JAX's key, which holds the program, the versions, the flags and the machine."""

    def __init__(self, path: Path):
        self._path, self._tidied = path, False

    def get(self, key: str) -> bytes | None:
        body = _read(self._path / key)
        if body is None:
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path / key)  # in use: others go first
        return body.tobytes()

    def put(self, key: str, value: bytes) -> None:
        _write(self._path / key, np.frombuffer(value, np.uint8))
        if not self._tidied:  # once a process: a full folder has thousands of files
            self._tidied = True
            self._tidy()

    def _tidy(self) -> None:
        """Over the limit, the programs not used for longest go, to half of it."""
        stats = {}
        for path in self._path.glob("*"):
            with contextlib.suppress(OSError):  # another process was here first
                stats[path] = path.stat()
        size = sum(stat.st_size for stat in stats.values())
        for path in sorted(stats, key=lambda path: stats[path].st_mtime_ns) if size > PROGRAMS_LIMIT else ():
            with contextlib.suppress(OSError):
                path.unlink()
            size -= stats[path].st_size
            if size <= PROGRAMS_LIMIT // 2:
                break


def _packed(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """One run of bytes, uint8[size]: what the arrays are, then each of them at a multiple of 64."""
    about = json.dumps([[name, array.dtype.str, array.shape] for name, array in arrays.items()]).encode()
    assert len(about) <= HEADER, "more arrays than the header has room for"
    body = _aligned(HEADER + sum(array.nbytes + -array.nbytes % ALIGNED for array in arrays.values()))
    body[:HEADER] = np.frombuffer(about.ljust(HEADER), np.uint8)
    for name, place in _unpacked(body).items():
        place[...] = arrays[name]
    return body


def _unpacked(body: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays, as views of the bytes."""
    found, start = {}, HEADER
    for name, dtype, shape in json.loads(body[:HEADER].tobytes()):
        size = np.dtype(dtype).itemsize * math.prod(shape)
        found[name] = body[start : start + size].view(dtype).reshape(shape)
        start += size + -size % ALIGNED
    return found


def _aligned(size: int) -> np.ndarray:
    """uint8[size], all zero, from the start of a page of memory.

    Pages are asked for at once where the system can: numpy's, faulted in as huge pages, took 0.02 to 0.4 s for
    CIFAR-10, these 0.07 s.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    return np.frombuffer(mmap.mmap(-1, max(size, 1), flags=flags), np.uint8)[:size]


def _read(path: Path) -> np.ndarray | None:
    """What `_write` wrote, aligned; None where there is nothing, or something else."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        digest = file.read(32)
        body = _aligned(max(0, os.fstat(file.fileno()).st_size - 32))
        if file.readinto(body.data) == len(body) and hashlib.sha256(body.data).digest() == digest:
            return body
    return None


def _write(path: Path, body: np.ndarray) -> None:
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
