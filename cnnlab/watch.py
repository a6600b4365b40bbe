"""A process of several goes on in a child, so that its parent can say in a line what XLA says in pages."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading

EXIT_LOST = 75  # another process of the run is gone; run the same command to go on (sysexits' EX_TEMPFAIL)
LOST = "another process of this run is gone (killed, or its machine lost): start all of them again to go on"
ALONE = "error: the processes of the run did not find each other: start --processes of them, each as another --process"
JOINED = b"cnnlab: joined\n"  # by which the child tells its parent on standard error
CHATTER = (  # C++ on what is said here in a line, with its second lines
    b"coordination_service",
    b"preemption_",
    b"add_port.cc",
    b":UNKNOWN:Error received from peer",
    b"GRPC error information",
)


def watched() -> None:
    """Go on in a child, while this process waits for it, hands it signals, and turns its end into an exit status.

    Where the first process is gone, XLA aborts the others with pages of C++; here that becomes one line.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # a terminal's Ctrl-C comes from the parent, once
        with contextlib.suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: who kills the parent means the child
        os.dup2(write, 2)
        os.close(read)
        os.close(write)
        return
    os.close(write)
    handed_on = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, handed_on)  # in the thread: taken there, they would not end our wait
    relayed = threading.Thread(target=_relay, args=(read, seen := set()), daemon=True)
    relayed.start()
    for number in handed_on:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handed_on)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):  # none is left
        os.killpg(child, signal.SIGKILL)  # Grain's reader processes, which a dead child cannot end
    relayed.join(timeout=1)
    ends = {-signal.SIGTERM: ("stopped by SIGTERM", EXIT_LOST), -signal.SIGINT: ("interrupted", 128 + signal.SIGINT)}
    if "joined" not in seen:
        ends[-signal.SIGABRT] = ALONE, 2
    elif "aborted" in seen:
        ends[-signal.SIGABRT] = LOST, EXIT_LOST
    if status in ends:
        said, status = ends[status]
        if "said" not in seen:
            os.write(2, f"{said}\n".encode())
    os._exit(status if status >= 0 else 128 - status)


def _relay(errors: int, seen: set[str]) -> None:
    """Hand on what the child says on standard error, but for XLA's words; `seen` tells of these."""
    with os.fdopen(errors, "rb") as lines:
        for line in lines:
            if line == JOINED:
                seen.add("joined")
                continue
            if b"JAX distributed service detected fatal errors" in line:  # and a stack trace
                seen.add("aborted")
            ours = LOST.encode() in line
            if ours or not ("aborted" in seen or any(source in line for source in CHATTER)):
                os.write(2, line)
            if ours:
                seen.add("said")
