"""All that cnnlab uses of JAX's private modules, in one place: each item has no public equivalent.

tests/test_jax_private.py holds each against the JAX that is installed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Protocol, cast


class ProgramCache(Protocol):
    """What JAX asks of a cache of compiled programs."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, value: bytes) -> None: ...


def keep_programs_in(cache: ProgramCache) -> None:
    """Have JAX keep compiled programs in a cache of ours, those of every process.

    JAX's own writes in place, warns at every start once an entry is damaged, and never writes that
    entry again (jax 0.10 to 0.12, `LRUCache.put`). And only process 0 writes, though most programs
    of the others have other keys (jax 0.10 to 0.12, `compiler._cache_write`).
    """
    from jax._src import compilation_cache, compiler

    compiler._cache_write = _keep
    compilation_cache._cache = cache  # pyright: ignore[reportAttributeAccessIssue]
    compilation_cache._cache_initialized = True


def _keep(
    key: str,
    seconds: float,
    name: str,
    backend: object,
    executable: object,
    host_callbacks: Sequence[object] = (),  # not passed by jax 0.12
) -> None:
    from jax._src import compilation_cache

    if host_callbacks:  # of this process
        return
    with contextlib.suppress(Exception):  # some platforms cannot serialise every program
        compilation_cache.put_executable_and_time(key, name, executable, backend, int(seconds))


class CoordinationClient(Protocol):
    """What cnnlab asks of JAX's client of the processes' service."""

    def key_value_set(self, key: str, value: str) -> None: ...

    def key_value_try_get(self, key: str) -> str: ...

    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None: ...


def coordination_client() -> CoordinationClient:
    """Return the client of the service through which the processes of a run find each other.

    It works without devices, and its barrier gives up after a time; the public functions need all
    processes alive. Orbax uses it likewise.
    """
    from jax._src import distributed

    return cast(CoordinationClient, distributed.global_state.client)
