"""What JAX compiles, kept between runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np

from cnnlab import jax_private, verified

PROGRAMS_LIMIT = 256 << 20  # bytes of compiled programs; a configuration has some 300 KB


def keep_compilations() -> None:
    """Have JAX keep what it compiles, so that the same run starts without compiling. Call this
    before JAX compiles.

    Where $JAX_COMPILATION_CACHE_DIR is set, JAX's own cache is left as it is.
    """
    import jax

    path = verified.folder() / "xla"
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA's own files, which nothing verifies
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax_private.keep_programs_in(_Programs(path))


class _Programs:
    """Compiled programs by JAX's key, which holds the program, the versions, the flags and the
    machine.
    """

    def __init__(self, path: Path):
        self._path = path
        self._tidied = False

    def get(self, key: str) -> bytes | None:
        body = verified.read(self._path / key)
        if body is None:
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path / key)  # in use: others go first
        return body.tobytes()

    def put(self, key: str, value: bytes) -> None:
        verified.write(self._path / key, np.frombuffer(value, np.uint8))
        if not self._tidied:  # once a process: a full folder has thousands of files
            self._tidied = True
            self._tidy()

    def _tidy(self) -> None:
        """Remove the least recently used programs if over the limit, down to half of it."""
        stats = {}
        for path in self._path.glob("*"):
            with contextlib.suppress(OSError):  # another process was here first
                stats[path] = path.stat()
        size = sum(stat.st_size for stat in stats.values())
        for path in (
            sorted(stats, key=lambda path: stats[path].st_mtime_ns) if size > PROGRAMS_LIMIT else ()
        ):
            with contextlib.suppress(OSError):
                path.unlink()
            size -= stats[path].st_size
            if size <= PROGRAMS_LIMIT // 2:
                break
