"""The command line: flags from a frozen dataclass, exit statuses. Imports no jax."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import os
import re
import sys
import time
import traceback
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import TextIO, TypeVar, cast

from cnnlab import backend, config, files, signals, spec
from cnnlab.console import escaped
from cnnlab.errors import InputError, explained, unknown
from cnnlab.multihost import agree, processes, shutdown, supervise
from cnnlab.multihost.join import join
from cnnlab.signals import EXIT_INTERRUPTED, EXIT_PREEMPTED

T = TypeVar("T")

# The command, but for the interpreter's own start: this module is imported first.
STARTED = time.monotonic()

__all__ = ["EXIT_INPUT", "EXIT_INTERRUPTED", "EXIT_PREEMPTED", "Stopped", "main", "parse"]

EXIT_INPUT = 2  # what was asked for cannot be done as asked
# Thresholds of Python's garbage collection. With its own it looks through the objects that
# importing and tracing leave 400 times, which is a seventh of a start; with these, twice.
COLLECTION = 100_000, 2, 2


class Stopped(Exception):
    """The command ends with an exit status and a message, as a run that was asked to stop and has
    saved.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def parse(settings_class: type[T], args: list[str] | None = None) -> T:
    """Parse flags into a dataclass: `--learning-rate 1e-3` for `learning_rate: float`.

    The fields of nested dataclasses are flags like the others. `--config FILE` stands for the
    settings of a TOML file or of a run's config.json; flags override them.

    Raises:
      InputError: an unknown flag or a value that does not parse, in one line.
      SystemExit: status 0 after --help.
    """
    import tyro

    args = _from_files(settings_class, sys.argv[1:] if args is None else args)
    complaint = io.StringIO()
    try:
        # tyro draws its errors as boxes on stderr; here an error is one line.
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(settings_class, args=args, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    lines = [line.strip("│╭╰─╮╯ ") for line in complaint.getvalue().splitlines()]
    # The first is the box's title; its rules are dashes where stdout is not "utf-8".
    text = " ".join(line for line in lines[1:] if line.strip("-"))
    for tail in (" Argument helptext", "For full helptext"):
        text = text.split(tail)[0]
    text = text.strip(" .")
    if match := re.match(
        r"Error parsing (?!-)[\w.-]+: ", text
    ):  # the dataclass said it well enough
        raise InputError(text.removeprefix(match[0]))
    _explain_former(settings_class, args)
    raise InputError(f"{text}; --help lists the flags")


def _from_files(settings_class: type, args: list[str]) -> list[str]:
    """Put the settings of each `--config FILE` in front of the other arguments.

    Raises:
      InputError: a file that cannot be read, names a setting that is no flag here, or gives one a
        value of another type.
    """
    before: list[str] = []
    after: list[str] = []
    rest = iter(args)
    hints = _hints(settings_class)
    for arg in rest:
        if arg.partition("=")[0] != "--config":
            after.append(arg)
            continue
        path = arg.partition("=")[2] or next(rest, "")
        if not path:
            raise InputError("--config takes a file")
        values = config.read_file(path)
        if path.endswith(".json"):  # a run has settings that other commands have not
            elsewhere = _hints(config.Config).keys() - hints.keys()
            values = {name: value for name, value in values.items() if name not in elsewhere}
        for name, value in values.items():
            _check_read(path, name, value, hints)
        before += config.as_args(values)
    return before + after


def _check_read(path: str, name: str, value: object, hints: Mapping[str, object]) -> None:
    """Check a setting of a file against the flags of a command and their types."""
    if name not in hints:
        former = config.FORMER.get(name.replace("_", "-"))
        words = f"{name} is written {former} now" if former else unknown("setting", name, hints)
        raise InputError(f"--config {path}: {words}")
    if not config.fits(value, hints[name]):
        raise InputError(f"--config {path}: {name} cannot be {value!r}, which is of another type")


def _hints(settings_class: type) -> dict[str, object]:
    """Collect the types of all settings of a dataclass by name, including those of its sections."""
    hints: dict[str, object] = {}
    for name, kind in typing.get_type_hints(settings_class).items():
        hints |= _hints(cast(type, kind)) if dataclasses.is_dataclass(kind) else {name: kind}
    return hints


def _explain_former(settings_class: type, args: list[str]) -> None:
    """Raise InputError if a flag of an earlier version is what could not be parsed."""
    known = {config.flag(name) for name in _hints(settings_class)}
    for arg in args:
        flag = arg.partition("=")[0].replace("_", "-")
        former = config.FORMER.get(flag.removeprefix("--"))
        if flag.startswith("--") and former and flag not in known:
            raise InputError(
                f"{flag} is written {former} now; --list shows every part with its hyperparameters"
            )


def writable(path: str | None) -> None:
    """Check before the work that its result can be written, leaving nothing behind; None: there is
    no file.

    Raises:
      InputError: it cannot.
    """
    if path is not None:
        if files.is_url(path):
            raise InputError(f"{path} is a URL; give a file on a disk, and copy that there")
        try:
            try:
                with open(path, "x"):
                    pass
                os.remove(path)
            except FileExistsError:
                os.close(os.open(path, os.O_WRONLY))
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error


def main(
    body: Callable[[T], object],
    settings_class: type[T],
    args: list[str] | None = None,
    alone: Mapping[str, Callable[[list[str]], object]] | None = None,
    several: bool = False,
) -> None:
    """Parse the flags and run `body`. Where that fails, exit with one line for what the user can
    fix, and a traceback for what we must.

    Args:
      body: what to do with the flags.
      settings_class: a dataclass, its fields the flags.
      args: of the command line; None: those of this process.
      alone: what to do instead, with the words after it, for a flag that comes first, such as
        --list.
      several: whether several processes may do it together; they are joined first.

    Raises:
      SystemExit: 0, or one of the statuses above.
    """
    if args is None:
        gc.set_threshold(*COLLECTION)
    try:
        with signals.raised(last=args is None):
            _run(body, settings_class, args, alone or {}, several)
    except BrokenPipeError:  # the reader of our output went away (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except BaseException as error:
        number = signals.received()
        if number and args is None and processes.count() == 1 and not isinstance(error, Stopped):
            signals.leave(number)
        _end(error)
    finally:
        signals.forget()


def _run(
    body: Callable[[T], object],
    settings_class: type[T],
    args: list[str] | None,
    alone: Mapping[str, Callable[[list[str]], object]],
    several: bool,
) -> None:
    """Do what `main` says, signals being answered.

    Raises:
      Whatever `body` raises. InputError: code of the user's has ended the command.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError("the current directory is gone: change to one that is there") from error
    if args is None:
        if getattr(body, "__module__", None) == "__main__":
            with signals.blocked():
                backend.restart_with_huge_pages()
        args = sys.argv[1:]
    if args and args[0] in alone:
        work = partial(alone[args[0]], args[1:])
    else:
        flags = parse(settings_class, args)
        _join(flags, several)
        work = partial(body, flags)
    try:
        with signals.enforced():  # in the process that joining leaves
            work()
    except (SystemExit, GeneratorExit) as error:  # we raise neither
        raise InputError(f"code of yours has ended the command: {spec.where(error)}") from error


def _end(error: BaseException) -> None:
    """Exit with one line for what the user can fix; otherwise raise the error again."""
    if isinstance(error, Stopped):
        _exit(str(error), error.status)
    if number := signals.received():  # what imports an extension makes an ImportError of Ended
        _exit(signals.words(number), signals.status(number))
    match error:
        case KeyboardInterrupt():
            _exit("interrupted", EXIT_INTERRUPTED)
        case SystemExit():  # of --help
            raise error
    if shutdown.lost(error):  # perhaps in mid-save
        supervise.leave(supervise.EXIT_LOST, gone=True)
    words = " ".join(str(error).split()) if isinstance(error, InputError) else explained(error)
    if words is not None:
        _exit(f"error: {words}", EXIT_INPUT)
    if processes.count() > 1:
        shutdown.leave("".join(traceback.format_exception(error)), 1)
    raise error


def _join(settings: object, several: bool) -> None:
    """Join the other processes of the run, or refuse them where a command takes only one."""
    machine = getattr(settings, "machine", None)
    if not isinstance(machine, config.Machine):
        return
    if several:
        join(machine.coordinator, machine.processes, machine.process, machine.cache)
        values = cast(config.Settings, settings).to_json()
        agree.agree("the command line", values | {"process": 0, "data_dir": None})
    elif machine.processes not in (None, 1):
        raise InputError("--processes is for train.py and ablate.py: this command takes one")


def _give_up_full(stream: TextIO) -> None:
    """Drop what a stream cannot write: Python would try again, and end with status 120."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _exit(message: str, status: int) -> None:
    message = escaped(message)
    if processes.count() > 1:
        shutdown.leave(message, status)
    elif message:
        with contextlib.suppress(OSError):
            print(message, file=sys.stderr, flush=True)
    _give_up_full(sys.stdout)
    sys.exit(status)
