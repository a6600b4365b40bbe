"""How far a study is: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from cnnlab.console import Console


class Board(Console):
    """A console that shows a grid of cells, losses by conditions: accuracies of those done, how far the one is."""

    def __init__(self, mode: str = "auto", epochs: int = 1):
        super().__init__(mode)
        self._epochs = epochs
        self._cells: list[tuple[str, str]] = []
        self._done: dict[tuple[str, str], str] = {}
        self._shard: set[tuple[str, str]] = set()
        self._own: list[float] = []  # seconds of the cells trained by this process
        self._now: tuple[str, str] | None = None
        self._began = time.monotonic()
        self._phase = self._note = ""
        self._share = 0.0  # of the cell under way

    @contextmanager
    def showing(self, cells: Sequence[tuple[str, str]], shard: slice = slice(None)) -> Iterator[None]:
        """Show cells (loss, condition) while the body runs; `shard` is the part of them that is trained here."""
        self._cells, self._shard = list(cells), set(cells[shard])
        if self.mode != "bar":
            yield
            return
        from rich.live import Live

        with Live(get_renderable=self.table, refresh_per_second=2, transient=True) as live:
            self._bar = live
            try:
                yield
            finally:
                self._bar = None

    def started(self, loss: str, condition: str) -> None:
        """A cell is being trained from now on."""
        self._now, self._began, self._note, self._share = (loss, condition), time.monotonic(), "", 0.0

    def phase(self, what: str) -> None:
        """What is done to that cell: tuning, training, testing."""
        self._phase, self._share = what, 0.0

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch's metrics, a list over seeds each."""
        accuracy = row.get("validation_accuracy", row["train_accuracy"])
        self._note, self._share = f"{100 * np.mean(accuracy):.1f} %", row["epoch"] / self._epochs

    def finished(self, loss: str, condition: str, cell: Mapping[str, Any]) -> None:
        """A cell's result is there."""
        accuracies = [run["test"]["accuracy"] for run in cell["runs"] if run["diverged"] is None]
        broken = len(cell["runs"]) - len(accuracies)
        text = f"{100 * np.mean(accuracies):.2f} %" if accuracies else ""
        text += f" ({broken} diverged)" * bool(broken)
        self._done[loss, condition] = text
        if self._now == (loss, condition):
            self._own.append(time.monotonic() - self._began)
            self._now = None
            if self.mode != "bar":
                self.say(f"{len(self._done)}/{len(self._cells)} {loss}, {condition}: {text}{self._left()}")

    @contextmanager
    def progress(self, what: str, total: int | None, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
        """As a console's; on a terminal it moves the cell under way."""
        if self.mode != "bar":
            where = ", ".join(self._now or ())
            with super().progress(f"{where}: {self._phase}, {what}", total, unit, done) as advance:
                yield advance
            return
        before, position = self._share, done

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal position
            position += n
            if total and unit == "steps":
                self._share = before + (position - done) / total / self._epochs

        yield advance

    def _left(self) -> str:
        """The time left for this shard, if every cell takes as long as those before."""
        if not self._own:
            return ""
        cells = len(self._shard - self._done.keys()) - (self._share if self._now else 0)
        seconds = float(np.mean(self._own)) * cells
        left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        return f"; about {left} left" if cells > 0 else ""

    def table(self) -> Any:
        """The grid, as rich draws it."""
        from rich.markup import escape
        from rich.table import Table

        losses, conditions = (list(dict.fromkeys(part)) for part in zip(*self._cells, strict=True))
        title = f"{len(self._done)} of {len(self._cells)} cells done{self._left()}"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in ("test accuracy", *conditions):
            table.add_column(escape(name))
        for loss in losses:
            table.add_row(*[escape(text) for text in (loss, *[self._cell(loss, c) for c in conditions])])
        return table

    def _cell(self, loss: str, condition: str) -> str:
        if text := self._done.get((loss, condition)):
            return text
        if self._now == (loss, condition):
            return f"{self._phase} {100 * self._share:.0f} % {self._note and f'({self._note})'}"
        return "·"
