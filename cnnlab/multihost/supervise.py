"""A process of several continues in a child, so that its parent can say in a line what XLA says in
pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from typing import NoReturn

# Another process of the run is gone; run the same command to resume (sysexits' EX_TEMPFAIL)
EXIT_LOST = 75
LOST = (
    "another process of this run is gone (killed, or its machine lost): start all of them again to "
    "resume"
)
ALONE = (
    "error: the processes of the run did not find each other: start --processes of them, each as "
    "another --process"
)
RECORD = re.compile(rb"[IWEF]\d{4} \d\d:")  # opens a record of C++'s log, which may have more lines
FATAL = b"JAX distributed service detected fatal errors"
# C++ on what is said here in a line
CHATTER = (b"coordination_service", b"preemption_", b"add_port.cc")
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
READ_BYTES = 1 << 16  # a pipe holds no more
_words = -1  # the descriptor on which a child tells its parent how it stands


def watched() -> None:
    """Continue in a child, while this process waits for it, hands it signals, and turns its end
    into an exit status.

    Where the first process is gone, XLA aborts the others with pages of C++; here that becomes one
    line. The child's Python keeps the standard error; the parent reads what C++ writes to
    descriptor 2.
    """
    global _words
    errors, errors_end = os.pipe()
    words, words_end = os.pipe()
    # Until the parent has its handlers: a signal in between must reach the child
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # a terminal's Ctrl-C comes from the parent, once
        with contextlib.suppress(OSError, AttributeError):  # another libc
            # PR_SET_PDEATHSIG: who kills the parent means the child
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if sys.stderr is not None:  # as it is where it is closed
            sys.stderr = os.fdopen(os.dup(2), "w", 1, sys.stderr.encoding, sys.stderr.errors)
        os.dup2(errors_end, 2)
        for descriptor in (errors, errors_end, words):
            os.close(descriptor)
        _words = words_end
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        return
    os.close(errors_end)
    os.close(words_end)
    os._exit(_supervise(child, errors, words))


def joined() -> None:
    """Tell the parent that the processes of the run have found each other."""
    _tell("joined")


def leave(status: int, gone: bool = False) -> NoReturn:
    """End the child at once, without waiting for threads and peers as an orderly end of Python
    would.

    Args:
      status: of the exit.
      gone: whether another process of the run is gone; the parent then says so.
    """
    # closed, full, or nobody reads it any more
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    if gone:
        _tell("gone")
    _tell(f"exit {status}")
    os._exit(status)


def _tell(word: str) -> None:
    if _words >= 0:
        os.write(_words, f"{word}\n".encode())


def _supervise(child: int, errors: int, words: int) -> int:
    """Wait for a child to end, say what there is to say of that, and return the exit status."""

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(child, number)

    relay = Relay(errors)
    relay.start()  # with the signals blocked: taken in that thread, they would not end our wait
    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):  # none is left
        os.killpg(child, signal.SIGKILL)  # Grain's reader processes, which a dead child cannot end
    relay.finish()
    os.set_blocking(words, False)
    message = b""
    # A process of the child's is left, and has said nothing
    with contextlib.suppress(BlockingIOError):
        message = os.read(words, READ_BYTES)
    said, status = _verdict(status, message.decode().splitlines(), relay.fatal)
    if said:
        _write(f"{said}\n".encode())
    return status if status >= 0 else 128 - status


def _verdict(status: int, words: list[str], fatal: bool) -> tuple[str, int]:
    """Decide what to say of a child's end, if anything, and the exit status.

    Args:
      status: of the child, negative for a signal.
      words: that it has told its parent.
      fatal: whether XLA has said that it aborts because another process is gone.
    """
    if words and words[-1].startswith("exit "):  # XLA may have been quicker with its abort
        status = int(words[-1].split()[1])
    if status == -signal.SIGTERM:
        return "stopped by SIGTERM", EXIT_LOST
    if status == -signal.SIGINT:
        return "interrupted", 128 + signal.SIGINT
    if status == -signal.SIGABRT and "joined" not in words:
        return ALONE, 2
    if "gone" in words or (status == -signal.SIGABRT and fatal):
        return LOST, EXIT_LOST
    return "", status


class Relay(threading.Thread):
    """Pass on what C++ writes to the child's descriptor 2, except records on lost processes.

    C++ writes a record, which may have several lines, in one call: what is read later belongs to
    no earlier record.

    Attributes:
      fatal: whether XLA has said that it aborts the child; a stack trace follows.
    """

    def __init__(self, errors: int):
        super().__init__(daemon=True)
        self.fatal = False
        self._errors = errors
        self._writing = False
        self._chunks = 0

    def run(self) -> None:
        rest = b""
        dropped = False
        while chunk := os.read(self._errors, READ_BYTES):
            dropped = dropped and bool(rest)  # the record continues only if its line does
            *lines, rest = (rest + chunk).split(b"\n")
            kept = b""
            for line in lines:
                self.fatal = self.fatal or FATAL in line
                if RECORD.match(line):
                    dropped = any(source in line for source in CHATTER)
                if not (dropped or self.fatal):
                    kept += line + b"\n"
            if rest and not (dropped or self.fatal or RECORD.match(rest)):  # a progress bar, say
                kept = kept + rest
                rest = b""
            self._writing = True
            _write(kept)
            self._writing = False
            self._chunks += 1
        if not (dropped or self.fatal):
            _write(rest)

    def finish(self) -> None:
        """Wait until all is passed on, however slow its reader is.

        Processes that outlive the child are not waited for.
        """
        before = -1
        while self.is_alive() and (self._writing or self._chunks > before):
            before = self._chunks
            self.join(timeout=1)


def _write(text: bytes) -> None:
    """Write to standard error, if there is one and somebody reads it."""
    with contextlib.suppress(OSError):
        while text:
            text = text[os.write(2, text) :]
