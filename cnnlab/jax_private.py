"""All that cnnlab uses of JAX's private modules, in one place: each item has no public equivalent.

tests/test_jax_private.py holds each against the JAX that is installed.
"""

from __future__ import annotations

import contextlib
import os
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


def unusable_accelerators() -> dict[str, str]:
    """Return the accelerators of this machine that JAX cannot use, with its reasons. JAX has
    started.

    Where the package for them is not installed, that is the reason; of GPUs, which machines have
    for other ends, only those count that JAX has tried.
    """
    from jax._src import hardware_utils, xla_bridge

    reasons = dict(xla_bridge._backend_errors)
    if hardware_utils.num_available_tpu_chips_and_device_id()[0]:
        reasons.setdefault("tpu", "jax[tpu] is not installed")
    else:  # libtpu compiles for them anywhere
        reasons.pop("tpu", None)
    present = {
        "tpu": True,
        "cuda": hardware_utils.has_visible_nvidia_gpu(),
        "rocm": os.path.exists("/dev/kfd"),
    }
    working = xla_bridge.backends().keys()
    return {
        name: reason
        for name, reason in reasons.items()
        if present.get(name) and name not in working
    }


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
