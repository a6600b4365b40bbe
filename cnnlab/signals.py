"""SIGTERM, Ctrl-C and SIGHUP (a terminal was closed) from a script's first second to its last.

Where nothing can be lost they end the process at once, also where its main thread is in C++ (XLA
compiles for minutes there) and Python cannot run a handler. While a training holds steps that are
not saved (`held`), its loop answers them (training/signals.py). Not covered is what comes before
`main`: Python's start and the imports of a script, a fifth of a second.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from cnnlab.errors import Ended
from cnnlab.multihost import processes, supervise

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE = 2.0  # seconds in which Python may answer a signal before the process is ended
LOOK_SECONDS = 0.1
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it

EXIT_PREEMPTED = supervise.EXIT_LOST  # SIGTERM, SIGHUP; run the same command to resume
EXIT_INTERRUPTED = 130  # Ctrl-C

# Called by Python itself, which only reports what they raise
UNHEARD = ("_xla_gc_callback", "__del__")
# Of what is being imported: extension modules print what is raised there, or make an ImportError
IMPORT = "<frozen importlib._bootstrap>"

_holders = 0
_received = 0


def words(number: int) -> str:
    """Say that a signal has ended the process."""
    if number == signal.SIGINT:
        return "interrupted"
    return f"stopped by {signal.Signals(number).name}; run the same command again"


def status(number: int) -> int:
    """Return the exit status of a process that a signal has ended."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED


@contextlib.contextmanager
def raised(last: bool) -> Iterator[None]:
    """Raise Ended in the body when a signal comes, or has come while it was blocked.

    Only the main thread gets signals; in another one, and of a signal that is ignored (as nohup and
    "&" ask), nothing is raised.

    Args:
      last: whether only the end of the process follows, a quarter of a second for JAX: its status
        is known by then, and signals are ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _raise)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if last else handler)


def _raise(number: int, frame: FrameType | None) -> None:
    global _received
    if _received:  # schedulers send more than one
        return
    _received = number
    give_up_terminal()
    while frame is not None:
        if frame.f_code.co_name in UNHEARD:
            return  # `enforced`, or the loop of a training, which looks at `received`, ends it
        if frame.f_code.co_filename == IMPORT:
            leave(number)
        frame = frame.f_back
    raise Ended(words(number), number)


def give_up_terminal() -> None:
    """Drop what would be written to a terminal that is gone."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def received() -> int | None:
    """Return the signal that has come in the body of `raised`, if one has."""
    return _received or None


def forget() -> None:
    """Forget the signal that has come: what it was for has ended."""
    global _received
    _received = 0


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Keep signals waiting, also over an exec in the body."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Do not end the process in the body: its loop answers signals, and saves."""
    global _holders
    _holders += 1
    try:
        yield
    finally:
        _holders -= 1


@contextlib.contextmanager
def enforced() -> Iterator[None]:
    """End the process if Python has not, PATIENCE seconds after a signal, while nothing is held.

    Several processes of a run end together, or not at all: there it has no effect.
    """
    if threading.current_thread() is not threading.main_thread() or processes.count() > 1:
        yield
        return
    received, sent = os.pipe()
    os.set_blocking(sent, False)
    before = signal.set_wakeup_fd(sent, warn_on_full_buffer=False)
    _leave_children_alone()
    done = threading.Event()
    threading.Thread(target=_watch, args=(received, done), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        done.set()
        os.close(sent)


@functools.cache
def _leave_children_alone() -> None:
    """Keep the signals of forked children from this process, whose pipe they have."""
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


def _watch(received: int, done: threading.Event) -> None:
    """Wait for a signal, then for PATIENCE seconds without holders, and end the process."""
    number = 0
    with open(received, "rb", 0) as pipe:  # further signals are written, too
        while number not in NUMBERS:
            data = pipe.read(1)
            if not data:  # the body has ended
                return
            number = data[0]
        idle = 0.0
        while idle < PATIENCE:
            if done.wait(LOOK_SECONDS):
                return
            idle = 0.0 if _holders else idle + LOOK_SECONDS
    leave(number)


def leave(number: int) -> NoReturn:
    """End the process at once, whatever its threads do in C++."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        if os.isatty(1):
            os.write(1, SHOW_CURSOR)
        os.write(2, f"{words(number)}\n".encode())
    os._exit(status(number))
