"""How far a study is: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cnnlab.console import Console
from cnnlab.study.results import CellResult
from cnnlab.types import Row

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class UnderWay:
    """How far a cell is: `share` of what is done to it now, with a note; where, if not in this
    process.
    """

    began: float
    phase: str = ""
    share: float = 0.0
    note: str = ""
    where: str = ""


class Board(Console):
    """A console that shows a grid of cells, losses by conditions: accuracies of those done, how far
    the others are.
    """

    def __init__(self, mode: str = "auto", epochs: int = 1):
        super().__init__(mode)
        self._epochs = epochs
        self._cells: list[tuple[str, str]] = []
        self._done: dict[tuple[str, str], str] = {}
        self._shard: set[tuple[str, str]] = set()
        # Seconds of each cell trained by this process, or for it elsewhere.
        self._cell_seconds: list[float] = []
        self._now: dict[tuple[str, str], UnderWay] = {}
        self.here = UnderWay(0.0)  # the cell that this process trains

    @contextmanager
    def showing(
        self, cells: Sequence[tuple[str, str]], shard: slice = slice(None)
    ) -> Iterator[None]:
        """Show cells (loss, condition) while the body runs; `shard` is the part of them that is
        trained here.
        """
        self._cells = list(cells)
        self._shard = set(cells[shard])
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
        """Note that this process starts to train a cell."""
        self.here = self._now[loss, condition] = UnderWay(time.monotonic())

    def phase(self, what: str) -> None:
        """Note what is being done to that cell: tuning, training or testing."""
        self.here.phase = what
        self.here.share = 0.0

    def epoch(self, row: Row) -> None:
        """Note the metrics of an epoch, each a list over seeds."""
        accuracy = row.get("validation_accuracy", row["train_accuracy"])
        self.here.note = f"{100 * np.mean(accuracy):.1f} %"
        self.here.share = row["epoch"] / self._epochs

    def elsewhere(self, loss: str, condition: str, now: UnderWay) -> None:
        """Note how far along a cell is that another process trains for this one; its clock is not
        ours.
        """
        before = self._now.get((loss, condition))
        same = before is not None and before.where == now.where
        self._now[loss, condition] = replace(
            now, began=before.began if before and same else time.monotonic()
        )
        if not same and self.mode != "bar":
            self.say(f"training {loss}, {condition} on {now.where}")

    def finished(self, loss: str, condition: str, cell: CellResult, trained: bool = False) -> None:
        """Note a cell's result; `trained`: it was trained now, even if not seen under way."""
        accuracies = [run.test["accuracy"] for run in cell.runs if run.test is not None]
        broken = len(cell.runs) - len(accuracies)
        text = f"{100 * np.mean(accuracies):.2f} %" if accuracies else ""
        if broken:
            text += f" ({broken} diverged)"
        self._done[loss, condition] = text
        if now := self._now.pop((loss, condition), None):
            self._cell_seconds.append(time.monotonic() - now.began)
        if (now or trained) and self.mode != "bar":
            self.say(
                f"{len(self._done)}/{len(self._cells)} {loss}, {condition}: {text}{self._left()}"
            )

    @contextmanager
    def progress(
        self, what: str, total: int | None, unit: str, done: int = 0
    ) -> Iterator[Callable[..., None]]:
        """Show progress as a console does; on a terminal, advance the cell under way instead."""
        if self.mode != "bar":
            where = "".join(
                f"{', '.join(key)}: " for key, now in self._now.items() if now is self.here
            )
            with super().progress(
                f"{where}{self.here.phase}, {what}", total, unit, done
            ) as advance:
                yield advance
            return
        before = self.here.share
        position = done

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal position
            position += n
            if total and unit == "steps":
                self.here.share = before + (position - done) / total / self._epochs

        yield advance

    def _left(self) -> str:
        """Estimate the time left for this shard, if each cell takes as long as those before and as
        many are trained at once.
        """
        if not self._cell_seconds:
            return ""
        under_way = self._now.values()
        cells = len(self._shard - self._done.keys()) - sum(now.share for now in under_way)
        seconds = float(np.mean(self._cell_seconds)) * cells / max(1, len(under_way))
        left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        return f"; about {left} left" if cells > 0 else ""

    def table(self) -> Table:
        """Build the grid as a rich table."""
        from rich.markup import escape
        from rich.table import Table

        losses, conditions = (list(dict.fromkeys(part)) for part in zip(*self._cells, strict=True))
        title = f"{len(self._done)} of {len(self._cells)} cells done{self._left()}"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in ("test accuracy", *conditions):
            table.add_column(escape(name))
        for loss in losses:
            table.add_row(
                *[escape(text) for text in (loss, *[self._cell(loss, c) for c in conditions])]
            )
        return table

    def _cell(self, loss: str, condition: str) -> str:
        if text := self._done.get((loss, condition)):
            return text
        if now := self._now.get((loss, condition)):
            return f"{now.phase} {100 * now.share:.0f} % {now.note and f'({now.note})'}"
        return "·"
