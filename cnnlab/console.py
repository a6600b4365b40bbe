"""What a person sees while it works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress

T = TypeVar("T")


def escaped(text: str) -> str:
    """Write out what is not printable in a text, as names of files and classes may hold: it must
    not move the cursor, change colours or begin another line.

    >>> print(escaped("café " + chr(27) + "[2J"))
    café \\x1b[2J
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def show(*lines: object, file: TextIO | None = None) -> None:
    """Print lines, escaped, on stdout or another stream. A reader that went away (`| head`) or a
    full disk must not end hours of training: then nothing more is printed.
    """
    try:
        for line in lines:
            _print(escaped(str(line)), file or sys.stdout)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)


def show_result(*lines: object) -> None:
    """Print lines, escaped, on stdout that are all that a command leaves.

    Raises:
      OSError: they cannot be written.
    """
    for line in lines:
        _print(escaped(str(line)), sys.stdout)


LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Console:
    """Progress and messages on stdout.

    `mode` is auto, bar, lines, off (messages only) or silent.
    """

    def __init__(self, mode: str = "auto"):
        terminal = sys.stdout is not None and sys.stdout.isatty()
        self.mode = ("bar" if terminal else "lines") if mode == "auto" else mode
        self._bar: Progress | Live | None = None

    def say(self, *lines: object) -> None:
        """Print lines that stay, escaped, unless the mode is silent."""
        if self.mode == "silent":
            return
        if self._bar is None:
            show(*lines)
            return
        for line in lines:
            text = escaped(str(line))
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(
        self, what: str, total: int | None, unit: str, done: int = 0
    ) -> Iterator[Callable[..., None]]:
        """Show a bar, or a line every ten seconds; yield `advance(n, note="")`. `total` is None
        where it is unknown.
        """
        if self.mode == "bar":
            from rich import progress

            columns = [
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
            ]
            columns += [
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}", markup=False),
            ]
            with progress.Progress(*columns, transient=True) as bar:
                task = bar.add_task(escaped(what), total=total, completed=done, note="")
                self._bar = bar
                try:
                    yield lambda n=1, note="": bar.update(task, advance=n, note=note)
                finally:
                    self._bar = None
            return
        state = [done, time.monotonic()]
        of = f"/{total}" if total else ""

        def advance(n: int = 1, note: str = "") -> None:
            state[0] += n
            if self.mode == "lines" and time.monotonic() - state[1] >= LINE_EVERY:
                state[1] = time.monotonic()
                show(f"{what}: {state[0]}{of} {unit} {note}".rstrip())

        yield advance

    def track(self, what: str, unit: str = "parts") -> Callable[[Sequence[T]], Iterator[T]]:
        """Return a wrapper of sequences that shows the progress of a loop over them."""

        def over(sequence: Sequence[T]) -> Iterator[T]:
            with self.progress(what, len(sequence), unit) as advance:
                for element in sequence:
                    yield element
                    advance()

        return over


def _print(text: str, file: TextIO | None) -> None:
    """Print a line, whatever the encoding of the stream."""
    try:
        print(text, file=file, flush=True)
    except UnicodeEncodeError:
        print(text.encode("ascii", "backslashreplace").decode(), file=file, flush=True)
