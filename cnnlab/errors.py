"""Exceptions for what a user can fix: the command line prints them as a single line and exits with
status 2.
"""

from __future__ import annotations

import difflib
import errno
import signal
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax
    import numpy as np

# What the system refuses, and no defect of ours: a full or broken disk, a quota or limit, rights
OF_THE_SYSTEM = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EAGAIN),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR),
)
MOST_NAMED = 60  # names that a message lists


class InputError(ValueError):
    """What was asked for cannot be done as asked. The message says what was wanted, what was got
    and what to do.
    """


class Diverged(InputError):
    """Training left the finite numbers. `steps`: int32[] or int32[seeds], the first, from 0; the
    message names it.
    """

    def __init__(self, message: str, steps: np.ndarray | jax.Array):
        super().__init__(message)
        self.steps = steps


class CheckpointError(InputError):
    """A state that cannot be stored, or stored steps of which none can be trusted. The message
    names the step.
    """


class Ended(BaseException):
    """A signal ends this process. It is no Exception, so that what guards against errors lets it
    pass, and no KeyboardInterrupt, which a user's code may raise too.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def is_stop(error: BaseException) -> bool:
    """Return whether an error asks this process to end, and is none of the code that raised it."""
    interrupted = isinstance(error, KeyboardInterrupt)
    return isinstance(error, Ended) or (
        interrupted and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def said(error: BaseException) -> str:
    """Return what an error says; nothing where a user's own class fails to."""
    try:
        return str(error)
    except Exception:
        return ""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or the name of its class."""
    return next(iter(said(error).splitlines()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """Format what an error says in one line of at most 200 characters: its start and its end, where
    a chain of causes says what was refused.
    """
    text = " ".join(said(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:105]} ... {text[-90:]}"


def explained(error: BaseException) -> str | None:
    """Explain an error that the user's machine or environment caused; None for others."""
    if is_out_of_memory(error):
        return f"out of memory ({one_line(error)}); ask for less: a smaller batch or network"
    if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
        file = "" if error.filename is None else f"{error.filename}: "
        return f"{file}{error.strerror}"
    if isinstance(error, ValueError) and _while_importing("jax", error):
        return f"{one_line(error)}, in the environment"  # JAX reads its variables when imported
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: Python's, the system's, or that of XLA, which says so only in
    words.
    """
    text = said(error)
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(words in text for words in ("RESOURCE_EXHAUSTED", "std::bad_alloc"))
    )


def _while_importing(package: str, error: BaseException) -> bool:
    """Return whether an error was raised while a module of a package was being imported."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(
        frame.f_code.co_name == "<module>"
        and frame.f_globals.get("__name__", "").partition(".")[0] == package
        for frame in frames
    )


def release(error: BaseException | None) -> None:
    """Clear the variables of the frames that a caught error came from, and of those behind its
    causes.

    A failed upload of gcsfs leaves a view of its buffer there; from Python 3.13 on, the garbage
    collector then says on standard error that the buffer has one.
    """
    seen = []
    while error is not None and error not in seen:
        traceback.clear_frames(error.__traceback__)
        seen.append(error)
        error = error.__cause__ or error.__context__


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Build the error for an unknown name, with the nearest known one suggested.

    >>> print(unknown("loss", "focl", ["focal", "mean_squared_error"]))
    unknown loss 'focl': did you mean 'focal'? Known: focal, mean_squared_error.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else "."
    every = (
        f" Known: {', '.join(known)}."
        if len(known) <= MOST_NAMED
        else ""
        if hint
        else f" {len(known)} are known."
    )
    return InputError(f"unknown {kind} '{name}'{hint}{every}")
