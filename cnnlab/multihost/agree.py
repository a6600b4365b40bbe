"""What the processes of a run do together: one result or error for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from cnnlab.errors import InputError
from cnnlab.multihost import processes

T = TypeVar("T")


def on_first(action: Callable[[], T]) -> T:
    """Call `action` on the first process, and return its result on all; they continue when it is
    done.

    Args:
      action: called on the first process only; what it returns must be something
        that `messages.encode` takes.

    Raises:
      Exception: what it raised there, on all processes.
    """
    if processes.count() == 1:
        return action()
    result, error = _attempt(action) if processes.index() == 0 else (None, None)
    received, its_error = _gathered((result, error), from_all=False)[0]
    if its_error is not None:
        raise error or its_error
    return cast(T, received)


def on_all(action: Callable[[], T]) -> T:
    """Call `action` on each process, and return its result there. Where it fails on one, it fails
    on all, with the first one's error.

    Args:
      action: called on every process; it must not wait for the others.

    Raises:
      Exception: of the first process on which it failed.
    """
    if processes.count() == 1:
        return action()
    result, error = _attempt(action)
    for which, theirs in enumerate(_gathered(error)):
        if theirs is not None:
            if isinstance(theirs, InputError):
                theirs.args = (
                    f"process {which} of {processes.count()}: {theirs}",
                    *theirs.args[1:],
                )
            raise theirs
    return cast(T, result)


def agree(what: str, value: object) -> None:
    """Make sure that all processes have the same value.

    Args:
      what: it is, for the message.
      value: anything that `messages.encode` takes, and that compares.

    Raises:
      InputError: on all, if one differs from the first.
    """
    if processes.count() > 1:
        values = _gathered(value)
        if differing := [i for i, theirs in enumerate(values) if theirs != values[0]]:
            raise InputError(
                f"{what} of process {differing[0]} differs from that of process 0: give all the "
                "same"
            )


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, error


def _gathered(value: T, from_all: bool = True) -> list[T]:
    """Gather the values of all processes; without `from_all`, a list of only that of process 0."""
    import numpy as np
    from jax.experimental import multihost_utils

    from cnnlab.multihost import messages

    collect = (
        multihost_utils.process_allgather if from_all else multihost_utils.broadcast_one_to_all
    )
    try:
        body = messages.encode(value)
    except TypeError as error:  # the others wait for a message
        body = messages.encode((None, error) if isinstance(value, tuple) else error)
    high_low = np.array(divmod(len(body), 2**30), np.int32)  # jax has no larger numbers by default
    sizes = np.reshape(collect(high_low), (-1, 2)) @ np.array([2**30, 1])
    # Few sizes: each is a compilation
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    if from_all or processes.index() == 0:
        padded[: len(body)] = np.frombuffer(body, np.uint8)
    rows = np.reshape(collect(padded), (-1, len(padded)))
    received = zip(rows, sizes, strict=True)
    return [cast(T, messages.decode(row[:size].tobytes())) for row, size in received]
