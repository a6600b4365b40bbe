"""The command line: flags from a frozen dataclass, exit statuses. Imports no jax."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cnnlab.config import FORMER, Training
from cnnlab.errors import InputError
from cnnlab.multihost import agree, processes, shutdown, supervise
from cnnlab.multihost.join import join

T = TypeVar("T")

STARTED = (
    time.monotonic()
)  # the command, but for the interpreter's own start: this module is imported first

EXIT_INPUT = 2  # what was asked for cannot be done as asked
EXIT_PREEMPTED = (
    supervise.EXIT_LOST
)  # SIGTERM: saved and stopped; run the same command to go on (sysexits' EX_TEMPFAIL)
EXIT_INTERRUPTED = 130  # Ctrl-C: saved and stopped


class Stopped(Exception):
    """A run that was asked to stop and has saved. `status` is the exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def parse(config_class: type[T], args: list[str] | None = None) -> T:
    """Flags to a dataclass instance: `--learning-rate 1e-3` for `learning_rate: float`.

    Raises:
      InputError: an unknown flag or a value that does not parse, in one line.
      SystemExit: status 0 after --help.
    """
    import tyro

    complaint = io.StringIO()
    try:
        # tyro draws its errors as boxes on stderr; here an error is one line.
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(config_class, args=args)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    lines = [line.strip("│╭╰─╮╯ ") for line in complaint.getvalue().splitlines()]
    # The first is the box's title; its rules are dashes where stdout is not "utf-8".
    text = " ".join(line for line in lines[1:] if line.strip("-"))
    for tail in (" Argument helptext", "For full helptext"):
        text = text.split(tail)[0]
    text = text.strip(" .")
    if text.startswith(
        own := f"Error parsing {config_class.__name__}: "
    ):  # the dataclass said it well enough
        raise InputError(text.removeprefix(own))
    _explain_former(config_class, sys.argv[1:] if args is None else args)
    raise InputError(f"{text}; --help lists the flags")


def _explain_former(config_class: Any, args: list[str]) -> None:
    """Raises InputError where a flag of an earlier version is what could not be parsed."""
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(config_class)}
    for arg in args:
        flag = arg.removeprefix("--").partition("=")[0].replace("_", "-")
        if arg.startswith("--") and flag in FORMER and flag not in fields:
            raise InputError(
                f"--{flag} is written {FORMER[flag]} now; --list shows every part with its "
                "hyperparameters"
            )


def writable(path: str | None) -> None:
    """Find out before the work whether its result can be written, leaving nothing behind; None is
    no file.

    Raises:
      InputError: it cannot.
    """
    if path is not None:
        there = os.path.lexists(path)
        try:
            with open(path, "a"):
                pass
            if not there:
                os.remove(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error


def main(
    body: Callable[[T], Any],
    config_class: type[T],
    args: list[str] | None = None,
    alone: Mapping[str, Callable[[list[str]], Any]] | None = None,
    several: bool = False,
) -> None:
    """Parse the flags, run `body`, and exit: one line for what the user can mend, a traceback for
    what we must.

    Args:
      body: what to do with the flags.
      config_class: a dataclass, its fields the flags.
      args: of the command line; None: those of this process.
      alone: what to do instead, with the words after it, for a flag that comes first, such as
        --list.
      several: whether several processes may do it together; they are joined first.

    Raises:
      SystemExit: 0, or one of the statuses above.
    """
    args = sys.argv[1:] if args is None else args
    instead = (alone or {}).get(args[0]) if args else None
    try:
        if instead:
            instead(args[1:])
        else:
            flags = parse(config_class, args)
            _join(flags, several)
            body(flags)
    except InputError as error:
        if shutdown.lost(error):  # in mid-save
            supervise.leave(supervise.EXIT_LOST, gone=True)
        _exit(f"error: {' '.join(str(error).split())}", EXIT_INPUT)
    except Stopped as stop:
        _exit(str(stop), stop.status)
    except KeyboardInterrupt:
        _exit("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if shutdown.lost(error):
            supervise.leave(supervise.EXIT_LOST, gone=True)
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            _exit(
                f"error: out of memory ({' '.join(str(error).split())[:160]}); ask for less",
                EXIT_INPUT,
            )
        if "Could not determine home directory" in str(error):  # pathlib's word for ~nobody/folder
            _exit(
                "error: a path starts with ~ and the name of a user who has no home here",
                EXIT_INPUT,
            )
        if "for JAX flag" in str(error):  # JAX reads its environment variables when it is imported
            _exit(f"error: {error}, in the environment", EXIT_INPUT)
        if processes.count() > 1:
            shutdown.leave(traceback.format_exc(), 1)
        raise


def _join(flags: Any, several: bool) -> None:
    if not isinstance(flags, Training):
        return
    if several:
        join(flags.coordinator, flags.processes, flags.process)
        agree.agree("the command line", flags.to_json() | {"process": 0, "data_dir": None})
    elif flags.processes not in (None, 1):
        raise InputError("--processes is for train.py and ablate.py: this command takes one")


def _exit(message: str, status: int) -> None:
    if processes.count() > 1:
        shutdown.leave(message, status)
    else:
        print(message, file=sys.stderr, flush=True)
    sys.exit(status)
