"""How far a study is: live tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from cnnlab.console import Console
from cnnlab.study.folder import Cell
from cnnlab.study.records import CellResult
from cnnlab.types import Row

if TYPE_CHECKING:
    from rich.console import Group
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


@dataclass
class Done:
    """What is finished of an arm under a condition: each seed's accuracy, None if it diverged."""

    accuracies: list[float | None] = field(default_factory=list)

    def __str__(self) -> str:
        finite = [accuracy for accuracy in self.accuracies if accuracy is not None]
        text = f"{100 * np.mean(finite):.2f} %" if finite else ""
        if lost := len(self.accuracies) - len(finite):
            text += f" ({lost} diverged)"
        return text


class Board(Console):
    """A console that shows a grid, arms by conditions: accuracies of what is done, how far the rest
    is; and how the comparisons stand.
    """

    def __init__(self, mode: str = "auto", epochs: int = 1):
        super().__init__(mode)
        self._epochs = epochs
        self._cells: dict[str, Cell] = {}  # by digest, as are the next ones
        self._here: set[str] = set()
        self._results: dict[str, Done] = {}
        self._now: dict[str, UnderWay] = {}
        # Seconds of each cell trained by this process, or for it elsewhere.
        self._cell_seconds: list[float] = []
        self._standings: Table | None = None
        self.here = UnderWay(0.0)  # the cell that this process trains

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show the tables while the body runs."""
        if self.mode != "bar":
            yield
            return
        from rich.live import Live

        with Live(get_renderable=self.tables, refresh_per_second=2, transient=True) as live:
            self._bar = live
            try:
                yield
            finally:
                self._bar = None

    def expect(self, cells: Sequence[Cell], here: Sequence[Cell]) -> None:
        """Note cells that the study has, and those of them that are trained by this process."""
        self._cells |= {cell.digest: cell for cell in cells}
        self._here |= {cell.digest for cell in here}

    def started(self, cell: Cell) -> None:
        """Note that this process starts to train a cell."""
        self.here = self._now[cell.digest] = UnderWay(time.monotonic())

    def phase(self, what: str) -> None:
        """Note what is being done to that cell: tuning, training or testing."""
        self.here.phase = what
        self.here.share = 0.0

    def epoch(self, row: Row) -> None:
        """Note the metrics of an epoch, each a list over seeds."""
        accuracy = row.get("validation_accuracy", row["train_accuracy"])
        self.here.note = f"{100 * np.mean(accuracy):.1f} %"
        self.here.share = row["epoch"] / self._epochs

    def elsewhere(self, cell: Cell, now: UnderWay) -> None:
        """Note how far along a cell is that another process trains for this one; its clock is not
        ours.
        """
        before = self._now.get(cell.digest)
        same = before is not None and before.where == now.where
        self._now[cell.digest] = replace(
            now, began=before.began if before and same else time.monotonic()
        )
        if not same and self.mode != "bar":
            self.say(f"training {cell.name} on {now.where}")

    def finished(self, cell: Cell, result: CellResult, trained: bool = False) -> None:
        """Note a cell's result; `trained`: it was trained now, even if not seen under way."""
        done = Done([None if run.test is None else run.test["accuracy"] for run in result.runs])
        self._results[cell.digest] = done
        if now := self._now.pop(cell.digest, None):
            self._cell_seconds.append(time.monotonic() - now.began)
        if (now or trained) and self.mode != "bar":
            self.say(f"{len(self._results)}/{len(self._cells)} {cell.name}: {done}{self._left()}")

    def standing(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show how the comparisons stand: a table, elsewhere a line each.

        Args:
          head: names of the columns.
          rows: of each comparison its name, number of seeds, ... and verdict.
        """
        if self.mode != "bar":
            for name, seeds, *others, verdict in rows:
                named = [f"{what} {text}" for what, text in zip(head[2:-1], others, strict=True)]
                self.say(f"  {name} {seeds} seeds, {', '.join([*named, verdict])}")
            return
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in head:
            table.add_column(escape(name))
        for row in rows:
            table.add_row(*map(escape, row))
        self._standings = table

    @contextmanager
    def progress(
        self, what: str, total: int | None, unit: str, done: int = 0
    ) -> Iterator[Callable[..., None]]:
        """Show progress as a console does; on a terminal, advance the cell under way instead."""
        if self.mode != "bar":
            where = "".join(
                f"{self._cells[digest].name}: "
                for digest, now in self._now.items()
                if now is self.here and digest in self._cells
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
        """Estimate the time left for what this process trains, if each cell takes as long as those
        before and as many are trained at once.
        """
        if not self._cell_seconds:
            return ""
        under_way = self._now.values()
        cells = len(self._here - self._results.keys()) - sum(now.share for now in under_way)
        seconds = float(np.mean(self._cell_seconds)) * cells / max(1, len(under_way))
        left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        return f"; about {left} left" if cells > 0 else ""

    def tables(self) -> Group | Table:
        """Build what is shown: the grid, and below it how the comparisons stand."""
        from rich.console import Group

        if self._standings is None:
            return self.table()
        return Group(self.table(), "", self._standings)

    def table(self) -> Table:
        """Build the grid as a rich table."""
        from rich.markup import escape
        from rich.table import Table

        arms = dict.fromkeys(cell.arm for cell in self._cells.values())
        conditions = dict.fromkeys(cell.key[1] for cell in self._cells.values())
        title = f"{len(self._results)} of {len(self._cells)} cells done{self._left()}"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in ("test accuracy", *conditions):
            table.add_column(escape(name))
        for arm in arms:
            texts = [self._arm(arm, condition) for condition in conditions]
            table.add_row(*map(escape, (arm, *texts)))
        return table

    def _arm(self, name: str, condition: str) -> str:
        """Say how far an arm is under a condition."""
        cells = [cell for cell in self._cells.values() if cell.key == (name, condition)]
        done = Done()
        for cell in cells:
            if cell.digest in self._results:
                done.accuracies += self._results[cell.digest].accuracies
        seeds = sum(len(cell.seeds) for cell in cells)
        parts = []
        if done.accuracies:
            of = len(done.accuracies)
            parts.append(f"{done}" if of == seeds else f"{done}, {of} of {seeds} seeds")
        for cell in cells:
            if now := self._now.get(cell.digest):
                note = f" ({now.note})" if now.note else ""
                parts.append(f"{now.phase} {100 * now.share:.0f} %{note}")
        return "; ".join(parts) or "·"
