"""Starting JAX on this machine: its devices, and the memory of a CPU. Imports jax when it is
needed, not before.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any, cast

from cnnlab import jax_private
from cnnlab.errors import InputError
from cnnlab.types import Device

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4  # of malloc.h

# What a container may have in all; "max", or no file, where there is no limit
CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# Variables that hide a platform's devices from a program
HIDING = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES"}

HUGE_PAGES = "glibc.malloc.hugetlb=1"
HUGE_PAGES_SETTING = "/sys/kernel/mm/transparent_hugepage/enabled"


def restart_with_huge_pages() -> None:
    """Run this program's command again, with malloc on huge pages, where Linux gives them to those
    who ask.

    XLA asks for its temporaries anew each step, and threads other than the first give back what is
    larger than 64 MB: ResNet-18's step faults in 190,000 pages, or 1,400 huge ones, with which it
    is 1.4 times as fast on two cores. glibc reads its settings only when a program starts. Without
    effect where GLIBC_TUNABLES is set, and in a program that was not started as a script. What a
    script did before is done again.
    """
    script = next(iter(sys.argv), "")
    is_script = script in sys.orig_argv[1:] and os.path.isfile(script)  # not -m, -c or stdin
    if "GLIBC_TUNABLES" in os.environ or not is_script:
        return
    try:
        with open(HUGE_PAGES_SETTING) as file:
            on_request = "[madvise]" in file.read()
    except OSError:  # another system
        return
    if on_request:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def start() -> list[Device]:
    """Return the default platform's devices; if JAX has not started, start it with a CPU device for
    each core.

    A program that computes before it asks for a layout must call this first; otherwise it has one
    CPU device.

    Raises:
      InputError: there is none.
    """
    import jax

    configure_cpu_devices()
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = next(
            iter(str(error).splitlines()), "the platform that JAX_PLATFORMS names is not there"
        )
        raise InputError(f"JAX finds no device: {reason}") from error
    if devices[0].platform == "cpu":
        _refuse_fallback()
        _keep_freed_memory()
    return devices


def _refuse_fallback() -> None:
    """Refuse to compute on the CPU where nobody asked for it and there is an accelerator: JAX would
    only log that it is busy.

    Raises:
      InputError: there is one that cannot be used.
    """
    import jax

    settings = jax.config.values
    if settings["jax_platforms"] or settings["jax_platform_name"]:
        return
    for platform, reason in jax_private.unusable_accelerators().items():
        if os.environ.get(HIDING.get(platform, ""), "all").strip() not in ("", "-1"):
            raise InputError(
                f"this machine has a {'TPU' if platform == 'tpu' else 'GPU'} that JAX cannot use "
                f"({' '.join(reason.split())[:200]}); perhaps another process has it. Free it, or "
                "set JAX_PLATFORMS=cpu to compute on the CPU"
            )


def configure_cpu_devices() -> None:
    """Let JAX have a CPU device for each core once it starts; without effect if it has started, or
    if another number is asked for.

    Call this before importing a user's module, which may compute.
    """
    import jax

    asked = os.environ.get("JAX_NUM_CPU_DEVICES") or "host_platform_device_count" in os.environ.get(
        "XLA_FLAGS", ""
    )
    if not asked:
        with contextlib.suppress(RuntimeError):  # JAX has started already, with the devices it has
            jax.config.update("jax_num_cpu_devices", cores())


def cores() -> int:
    """Count the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(device: Device) -> int | None:
    """Return how many bytes a device can still allocate; None where that is not known.

    A CPU's are those of the machine, or fewer where a container or ulimit -v allows fewer.
    """
    if device.platform != "cpu":
        stats = cast(Any, device).memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    limits = [int(text) for path in CONTAINER if (text := _read(path).strip()).isdecimal()]
    if available := re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo")):
        limits.append(int(available[1]) * 1024)
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and (pages := _read("/proc/self/statm").split()):
        limits.append(most - int(pages[0]) * resource.getpagesize())
    return min(limits, default=None)


def _read(path: str) -> str:
    """Read a file of the system; empty where it is not there."""
    with contextlib.suppress(OSError), open(path) as file:
        return file.read()
    return ""


def _keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next one.

    XLA asks for its temporaries anew each step; from 32 MB on malloc would return their pages and
    fault them in again. Kept, a step with batch norm on two cores is 1.9 times as fast on jax 0.10,
    1.3 times on 0.12.
    """
    with contextlib.suppress(OSError, AttributeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def silent(descriptor: int) -> Iterator[None]:
    """Drop what is written to a file descriptor, by C++ too."""
    sys.stdout.flush()
    kept = os.dup(descriptor)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nowhere)
