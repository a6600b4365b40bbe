"""Joining the processes of a run. With one process, which is the rule, nothing here costs
anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

from cnnlab import backend
from cnnlab.errors import InputError
from cnnlab.multihost import processes, shutdown, supervise

TPUS = ("/dev/accel0", "/dev/vfio")  # what a TPU VM has, and other machines may
# Of schedulers under which JAX finds the other processes by itself.
MANAGED = (
    "SLURM_PROCID",
    "OMPI_COMM_WORLD_RANK",
    "TPU_WORKER_ID",
    "TPU_WORKER_HOSTNAMES",
    "KUBERNETES_SERVICE_HOST",
)
WAIT_SECONDS = 30  # before it is said that others are waited for


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    cache: str | None = None,
) -> None:
    """Join the other processes of the run, if there are any. Call this before any other use of JAX.

    On Cloud TPU and under Slurm, Open MPI and Kubernetes, they find each other; elsewhere the
    arguments say how. Where there is no sign of these, jax is not even imported. From here on only
    the first process has a standard output.

    Args:
      coordinator: host:port of the first process.
      num_processes: how many there are; 1: this one is alone, whatever the scheduler says.
      process_id: the number of this one.
      cache: gs://BUCKET/FOLDER of what machines share, as their first programs are compiled here.

    Raises:
      InputError: they did not find each other, or the cache cannot be written.
    """
    if num_processes == 1 or processes.count() > 1:
        return
    managed = process_id is None
    if managed and not _may_have_others():
        return
    supervise.watched()
    # a pod may have no others
    warnings.filterwarnings("ignore", "Kubernetes environment detected", UserWarning)
    # By hand nothing else is asked: each process has all devices that it sees.
    method = None if managed else "deactivate"
    where = "" if managed else f", at {coordinator}"
    try:
        with _interruptible(), _said_after(WAIT_SECONDS, where):
            import jax  # here, as some of what it imports swallows a KeyboardInterrupt

            jax.distributed.initialize(
                coordinator, num_processes, process_id, cluster_detection_method=method
            )
    except ValueError as error:
        # no scheduler that JAX knows
        if managed and "coordinator_address should be defined" in str(error):
            return
        raise InputError(f"the processes of the run did not find each other: {error}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the processes of the run did not find each other: {reason}") from error
    supervise.joined()
    backend.start()
    processes.joined(jax.process_index(), jax.process_count())
    from cnnlab import compilation_cache, verified  # here, as they import numpy

    verified.share(cache)
    compilation_cache.keep_compilations()
    if processes.count() > 1:
        _silence_others()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it was XLA's, who would only note it


def _may_have_others() -> bool:
    """Return whether there are signs of a scheduler or a TPU slice, whose processes JAX finds by
    itself.
    """
    return any(name in os.environ for name in MANAGED) or any(map(os.path.exists, TPUS))


def _silence_others() -> None:
    """Let only the first process have a standard output, keep cnnlab's log from the root's handlers
    in all, and note requests to stop.
    """
    from jax.experimental import multihost_utils

    signal.signal(signal.SIGTERM, shutdown.note)  # it was XLA's, who would only note it
    if processes.index() == 0:
        sys.stdout = os.fdopen(os.dup(1), "w", 1, sys.stdout.encoding)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where gloo greets every peer
    # The first one says it; a library here gives the root a handler.
    logging.getLogger("cnnlab").propagate = False
    multihost_utils.sync_global_devices("cnnlab.join")


@contextlib.contextmanager
def _said_after(seconds: float, where: str) -> Iterator[None]:
    """Say that the other processes are still awaited, once that has taken `seconds`."""
    words = f"waiting for the other processes of the run, five minutes at most{where}"
    timer = threading.Timer(seconds, lambda: print(words, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process at once, even while it imports, or waits in C++."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
