"""How the processes of a run stop and end together."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

from cnnlab import jax_private
from cnnlab.errors import said
from cnnlab.multihost import processes, supervise

if TYPE_CHECKING:
    from types import FrameType

PARTING_SECONDS = 5  # how long a process that fails waits for the others to fail with it
STOP = "cnnlab.stop"
STOP_AHEAD = 8
_asked = threading.Event()
_looks = itertools.count(1)


def stop_wanted(asked: bool) -> bool:
    """Return whether several processes must stop, because one of them was asked to (SIGTERM, which
    clouds send before they take a machine). All get True at the same call, and must call this
    equally often.

    JAX's own preemption sync point is missed where steps are short and the machine is busy (in
    about 1 of 25 runs): it is passed before it is agreed on. Here the process that is asked first
    names a call that lies ahead of all, as no process is more than IN_FLIGHT dispatches ahead of
    another.

    Args:
      asked: whether this process was.
    """
    client = jax_private.coordination_client()
    look = next(_looks)
    if asked or _asked.is_set():
        with contextlib.suppress(Exception):  # another was before us
            client.key_value_set(STOP, str(look + STOP_AHEAD))
    try:
        return look >= int(client.key_value_try_get(STOP))
    except Exception:  # not there
        return False


def note(number: int, frame: FrameType | None) -> None:
    """Note that this process was asked to stop; a signal handler."""
    _asked.set()


def lost(error: BaseException) -> bool:
    """Return whether an error says that another process is gone."""
    return processes.count() > 1 and any(
        word in said(error) for word in ("Gloo", "NCCL", "coordination service", "heartbeat")
    )


def leave(message: str, status: int) -> NoReturn:
    """End this process, one of several, because of an error: with the others if all of them fail,
    otherwise alone, as the others are stuck.

    Args:
      message: to print on standard error; once, where all end together.
      status: of the exit.
    """
    all_leave = True
    client = jax_private.coordination_client()
    try:
        client.wait_at_barrier("cnnlab.leave", PARTING_SECONDS * 1000)
    except Exception:
        all_leave = False
    if not all_leave or processes.index() == 0:
        print(
            message
            if all_leave
            else f"process {processes.index()} of {processes.count()}: {message}",
            file=sys.stderr,
            flush=True,
        )
    if all_leave and processes.index() == 0:
        time.sleep(0.5)  # the others first: XLA aborts those whose first process is gone
    supervise.leave(status)
