"""Starting JAX on one machine or many: devices, the processes that share a run, what they do together.

Every process of a run executes the same program on its own devices; `on_first` is for whatever only one of them may
do, and its result or error is everybody's. With one process, which is the rule, nothing here costs anything. Imports
jax when it is needed, not before.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from cnnlab import watch
from cnnlab.errors import InputError

T = TypeVar("T")

PARTING_SECONDS = 5  # how long a process that fails waits for the others to fail with it
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h

TPUS = ("/dev/accel0", "/dev/vfio")  # what a TPU VM has, and other machines may
# Of schedulers under which JAX finds the other processes by itself.
MANAGED = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "KUBERNETES_SERVICE_HOST")
STOP, STOP_AHEAD = "cnnlab.stop", 8
WAIT_SECONDS = 30  # before it is said that others are waited for
_index, _count, _asked = 0, 1, False
_looks = itertools.count(1)


def index() -> int:
    """The number of this process among those of the run."""
    return _index


def count() -> int:
    """How many processes the run has."""
    return _count


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the other processes of the run, if there are any; to be called before anything else of JAX.

    On Cloud TPU, under Slurm, Open MPI and Kubernetes they find each other, elsewhere they are told; where there is no
    sign of these, jax is not even imported. From here on only the first process has a standard output.

    Args:
      coordinator: host:port of the first process.
      processes: how many there are; 1: this one is alone, whatever the scheduler says.
      process: the number of this one.

    Raises:
      InputError: they did not find each other.
    """
    global _index, _count
    if processes == 1 or _count > 1:
        return
    managed = process is None
    if managed and not any(name in os.environ for name in MANAGED) and not any(map(os.path.exists, TPUS)):
        return
    watch.watched()
    import jax

    warnings.filterwarnings("ignore", "Kubernetes environment detected", UserWarning)  # a pod may be alone
    method = None if managed else "deactivate"  # by hand: nothing else is asked, each process has all devices it sees
    who = "waiting for the other processes of the run, five minutes at most" + f", at {coordinator}" * (not managed)
    waiting = threading.Timer(WAIT_SECONDS, lambda: print(who, file=sys.stderr, flush=True))
    waiting.daemon = True
    waiting.start()
    try:
        with _interruptible():
            jax.distributed.initialize(coordinator, processes, process, cluster_detection_method=method)
    except ValueError as error:
        if managed and "coordinator_address should be defined" in str(error):  # no scheduler that JAX knows
            return
        raise InputError(f"the processes of the run did not find each other: {error}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the processes of the run did not find each other: {reason}") from error
    finally:
        waiting.cancel()
    watch.joined()
    start()
    _index, _count = jax.process_index(), jax.process_count()
    signal.signal(signal.SIGTERM, _note if _count > 1 else signal.SIG_DFL)  # it was XLA's, who would only note it
    if _count > 1:
        from jax.experimental import multihost_utils

        if _index == 0:
            sys.stdout = os.fdopen(os.dup(1), "w", 1, sys.stdout.encoding)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where gloo greets every peer
        sys.unraisablehook = _unraisable
        logging.getLogger("cnnlab").propagate = False  # the first one says it; a library here gives the root a handler
        multihost_utils.sync_global_devices("cnnlab.join")


def start() -> list[Any]:
    """The default platform's devices; if JAX has not started, with a CPU device for each core.

    A program that computes before it asks for a layout calls this first, or has one CPU device.

    Raises:
      InputError: there is none.
    """
    import jax

    configure_cpu_devices()
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), "the platform that JAX_PLATFORMS names is not there")
        raise InputError(f"JAX finds no device: {reason}") from error
    if devices[0].platform == "cpu":
        _keep_freed_memory()
    return devices


def configure_cpu_devices() -> None:
    """Let JAX have a CPU device for each core once it starts; without effect if it has, or if another number is asked.

    It comes before the import of a user's module, which may compute.
    """
    import jax

    asked = os.environ.get("JAX_NUM_CPU_DEVICES") or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not asked:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with contextlib.suppress(RuntimeError):  # JAX has started already, with the devices it has
            jax.config.update("jax_num_cpu_devices", cores)


def _keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next one.

    XLA asks for its temporaries anew each step; from 32 MB on malloc would return their pages and fault them in again.
    Kept, a step with batch norm on two cores is 1.9 times as fast on jax 0.10, 1.3 times on 0.12.
    """
    with contextlib.suppress(OSError, AttributeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def on_first(action: Callable[[], T]) -> T:
    """What `action` gives on the first process, on all of them; they go on when it is done.

    Args:
      action: called on the first process only; what it returns must pickle.

    Raises:
      Exception: what it raised there, on all processes.
    """
    if _count == 1:
        return action()
    result, error = _attempt(action) if _index == 0 else (None, None)
    result, error = _gathered((result, error), from_all=False)[0]
    if error is not None:
        raise error
    return result


def together(action: Callable[[], T]) -> T:
    """What `action` gives on each process; where it fails on one, it fails on all, with the first one's error.

    Args:
      action: called on every process; it must not wait for the others.

    Raises:
      Exception: of the first process on which it failed.
    """
    if _count == 1:
        return action()
    result, error = _attempt(action)
    for which, theirs in enumerate(_gathered(error)):
        if theirs is not None:
            if isinstance(theirs, InputError):
                theirs.args = (f"process {which} of {_count}: {theirs}", *theirs.args[1:])
            raise theirs
    return result


def agree(what: str, value: Any) -> None:
    """Make sure that all processes have the same.

    Args:
      what: it is, for the message.
      value: anything that pickles and compares.

    Raises:
      InputError: on all, if one differs from the first.
    """
    if _count > 1:
        values = _gathered(value)
        if differing := [i for i, theirs in enumerate(values) if theirs != values[0]]:
            raise InputError(f"{what} of process {differing[0]} differs from that of process 0: give all the same")


def _attempt(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it stays where it is; the others get its words
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _gathered(value: Any, from_all: bool = True) -> list[Any]:
    """The value of every process, or a list of that of the first alone."""
    import numpy as np
    from jax.experimental import multihost_utils

    collect = multihost_utils.process_allgather if from_all else multihost_utils.broadcast_one_to_all
    body = pickle.dumps(value)
    high_low = np.array(divmod(len(body), 2**30), np.int32)  # jax has no larger numbers by default
    sizes = np.reshape(collect(high_low), (-1, 2)) @ np.array([2**30, 1])
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)  # few sizes: each is a compilation
    if from_all or _index == 0:
        padded[: len(body)] = np.frombuffer(body, np.uint8)
    rows = np.reshape(collect(padded), (-1, len(padded)))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def stop_wanted(asked: bool) -> bool:
    """Whether several processes shall stop, as one of them was asked to (SIGTERM, which clouds send before they take a
    machine); all say yes at the same call, and ask equally often.

    JAX's own preemption sync point is missed where steps are short and the machine is busy (some 1 of 25 runs):
    it is passed before it is agreed on. Here whoever is asked first names a call that lies ahead of all, as no process
    is more than IN_FLIGHT dispatches before another.

    Args:
      asked: whether this process was.
    """
    from jax._src import distributed

    client: Any = distributed.global_state.client
    look = next(_looks)
    if asked or _asked:
        with contextlib.suppress(Exception):  # another was before us
            client.key_value_set(STOP, str(look + STOP_AHEAD))
    try:
        return look >= int(client.key_value_try_get(STOP))
    except Exception:  # not there
        return False


def _note(number: int, frame: Any) -> None:
    global _asked
    _asked = True


def _unraisable(unraisable: Any) -> None:
    """Python's own hook, but for what TensorStore's writers say of a save that failed when another process was lost."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    return _count > 1 and any(word in str(error) for word in ("Gloo", "NCCL", "coordination service", "heartbeat"))


def leave(message: str, status: int) -> NoReturn:
    """End this process of several for an error: with the others if it is everybody's, else alone, as they are stuck.

    Args:
      message: to print on standard error; once, where all end together.
      status: of the exit.
    """
    from jax._src import distributed  # as Orbax does: no public barrier works without devices, or gives up

    together = True
    client: Any = distributed.global_state.client
    try:
        client.wait_at_barrier("cnnlab.leave", PARTING_SECONDS * 1000)
    except Exception:
        together = False
    if not together or _index == 0:
        print(message if together else f"process {_index} of {_count}: {message}", file=sys.stderr, flush=True)
    if together and _index == 0:
        time.sleep(0.5)  # the others first: XLA aborts those whose first process is gone
    watch.leave(status)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Have Ctrl-C end the process at once, though it waits in C++."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def silent(descriptor: int) -> Iterator[None]:
    """Drop what is written to a file descriptor, by C++ too."""
    sys.stdout.flush()
    kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nowhere)
