"""A process of several goes on in a child, so that its parent can say in a line what XLA says in pages."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import io
import os
import re
import signal
import sys
import threading
from typing import NoReturn

EXIT_LOST = 75  # another process of the run is gone; run the same command to go on (sysexits' EX_TEMPFAIL)
LOST = "another process of this run is gone (killed, or its machine lost): start all of them again to go on"
ALONE = "error: the processes of the run did not find each other: start --processes of them, each as another --process"
RECORD = re.compile(rb"[IWEF]\d{4} \d\d:")  # opens a record of C++'s log, which may have more lines
FATAL = b"JAX distributed service detected fatal errors"
CHATTER = (b"coordination_service", b"preemption_", b"add_port.cc")  # C++ on what is said here in a line
WORD = re.compile(rb"cnnlab: (joined|gone|exit) ?(\d*)\n")  # what a child tells its parent on descriptor 2


@dataclasses.dataclass
class Heard:
    """What the parent has read of its child."""

    joined: bool = False  # the processes have found each other
    fatal: bool = False  # XLA aborts the child because another process is gone
    gone: bool = False  # the child has noticed so itself
    exit: int | None = None  # the status with which the child was about to exit


def watched() -> None:
    """Go on in a child, while this process waits for it, hands it signals, and turns its end into an exit status.

    Where the first process is gone, XLA aborts the others with pages of C++; here that becomes one line. The child's
    Python keeps the standard error; what else writes to descriptor 2, so C++, is read by the parent.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # a terminal's Ctrl-C comes from the parent, once
        with contextlib.suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: who kills the parent means the child
        sys.stderr = io.TextIOWrapper(
            io.FileIO(os.dup(2), "w"), sys.stderr.encoding, sys.stderr.errors, line_buffering=True, write_through=True
        )
        os.dup2(write, 2)
        os.close(read)
        os.close(write)
        return
    os.close(write)
    handed_on = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, handed_on)  # in the thread: taken there, they would not end our wait
    relayed = threading.Thread(target=_relay, args=(read, heard := Heard()), daemon=True)
    relayed.start()
    for number in handed_on:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handed_on)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):  # none is left
        os.killpg(child, signal.SIGKILL)  # Grain's reader processes, which a dead child cannot end
    relayed.join(timeout=1)
    ends = {-signal.SIGTERM: ("stopped by SIGTERM", EXIT_LOST), -signal.SIGINT: ("interrupted", 128 + signal.SIGINT)}
    if not heard.joined:
        ends[-signal.SIGABRT] = ALONE, 2
    elif heard.fatal:
        ends[-signal.SIGABRT] = LOST, EXIT_LOST
    if heard.gone:
        ends[EXIT_LOST] = LOST, EXIT_LOST
    if heard.exit is not None:  # XLA may have been quicker with its abort
        status = heard.exit
    if status in ends:
        said, status = ends[status]
        os.write(2, f"{said}\n".encode())
    os._exit(status if status >= 0 else 128 - status)


def joined() -> None:
    """Tell the parent that the processes of the run have found each other."""
    os.write(2, b"cnnlab: joined\n")


def leave(status: int, gone: bool = False) -> NoReturn:
    """End the child at once, without waiting for threads and peers as an orderly end of Python would.

    Args:
      status: of the exit.
      gone: whether another process of the run is, which the parent says then.
    """
    sys.stdout.flush()
    os.write(2, b"cnnlab: gone\n" * gone + b"cnnlab: exit %d\n" % status)
    os._exit(status)


def _relay(errors: int, heard: Heard) -> None:
    """Hand on what C++ says on the child's descriptor 2, but for records on lost processes, with all their lines."""
    dropped = False
    with os.fdopen(errors, "rb") as lines:
        for line in lines:
            if word := WORD.fullmatch(line):
                name, status = word[1].decode(), word[2]
                setattr(heard, name, int(status) if status else True)
                continue
            heard.fatal |= FATAL in line  # a stack trace follows
            if RECORD.match(line):
                dropped = any(source in line for source in CHATTER)
            if not (dropped or heard.fatal):
                os.write(2, line)
