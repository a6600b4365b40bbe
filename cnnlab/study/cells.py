"""A study's grid of cells, each a loss under a condition: trained here, on Ray, or by others."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnlab import compilation_cache, files
from cnnlab.console import Console
from cnnlab.errors import InputError
from cnnlab.multihost import agree
from cnnlab.study import folder as folders
from cnnlab.study import on_ray, plan, statistics
from cnnlab.study.board import Board
from cnnlab.study.checks import check
from cnnlab.study.folder import Cell, Digests
from cnnlab.study.plan import Study
from cnnlab.study.results import CellResult, Results
from cnnlab.study.seeds import train_cell


@dataclass(frozen=True)
class Job:
    """What every process that trains cells of a study has.

    Attributes:
      study: whose cells they are.
      folder: of the study, shared by all that train it.
      digests: of each cell, as `check` computed them.
      command: to run again, for messages.
    """

    study: Study
    folder: Path
    digests: dict[tuple[str, str], Digests]
    command: str

    def read(self, cell: Cell) -> CellResult | None:
        """Return what a cell's file holds; None if there is none.

        Raises:
          InputError: it is damaged, or of other data.
        """
        study = self.study
        wanted = folders.Wanted(plan.seeds(study), self.digests[cell.key], [*plan.metrics(study)])
        return agree.on_first(lambda: folders.read(self.folder, cell, wanted))

    def train(self, cell: Cell, board: Board) -> CellResult | None:
        """Train one cell, unless it is trained already or another process is training it.

        Returns:
          What its file holds, whoever trained it; None while another process trains it.

        Raises:
          InputError: the file is damaged, or of other data, or the folder cannot be written.
          Stopped: a signal came; the cell is saved.
        """
        compilation_cache.keep_compilations()
        if result := self.read(cell):
            return result
        with contextlib.ExitStack() as held:
            claim = folders.claimed(self.folder, cell.digest)
            # for all processes of this study
            claimed = agree.on_first(lambda: held.enter_context(claim))
            if claimed and not self.read(cell):
                board.started(*cell.key)
                trained = train_cell(self.study, cell, self.folder, board, self.command)
                path = self.folder / "cells" / f"{cell.words}-{cell.digest}.json"
                agree.on_first(lambda: files.write_json(path, trained.to_json()))
        if result := self.read(cell):
            agree.on_first(lambda: self.clear(cell))
        return result

    def clear(self, cell: Cell) -> None:
        """Remove the checkpoints of a finished cell, which a killed process may have left."""
        shutil.rmtree(folders.checkpoints(self.folder, cell), ignore_errors=True)


def conduct(study: Study, command: str) -> Results | None:
    """Announce a study, train it and show its progress; otherwise as `run`."""
    board = Board(study.progress, study.training.epochs)
    for line in announcement(study):
        board.say(line)
    return run(study, board, command)


def run(study: Study, board: Board, command: str) -> Results | None:
    """Train what is still missing of a study.

    Args:
      study: what to compare.
      board: shows how far it is.
      command: to run again, for messages and the report.

    Returns:
      The results; None while cells are missing that are another shard's or that another process is
      training.

    Raises:
      InputError: whatever cannot be done; found before any training where it can be known.
      Stopped: a signal came; the cells under way are saved.
    """
    folder = files.expanded(study.workdir).absolute()
    cells = [folders.cell(study, loss, condition) for loss, condition in plan.grid(study)]
    _refuse_twins(cells)
    plan.metric(study)  # refuse it before any training
    remote = on_ray.joined(study, command) if study.executor == "ray" else contextlib.nullcontext()
    with remote as cluster:
        if cluster:
            # Ray may have to wait for a machine
            board.say("checking losses and data on a machine of Ray's")
            digests = cluster.call(check, study, Console("off"))
        else:
            digests = agree.on_all(lambda: check(study, board))
        agree.agree("the data set or the teacher", [vars(digest) for digest in digests.values()])
        job = Job(study, folder, digests, command)
        _train_missing(job, cells, cluster, board)
        results = [job.read(cell) for cell in cells]
    finished = [result for result in results if result is not None]
    if missing := len(cells) - len(finished):
        board.say(
            f"{missing} of {len(cells)} cells are left to others; the report comes with the last "
            "one"
        )
        return None
    losses = len(study.losses)
    rows = [finished[i : i + losses] for i in range(0, len(cells), losses)]
    return Results(study, plan.conditions(study), rows, command)


def _train_missing(
    job: Job, cells: Sequence[Cell], cluster: on_ray.Cluster | None, board: Board
) -> None:
    """Train the cells of this shard that nobody has trained."""
    which, of = plan.shard(job.study.shard)
    shard = slice(which, None, of)
    with board.showing([cell.key for cell in cells], shard):
        for cell in cells:
            if result := job.read(cell):
                board.finished(*cell.key, result)
                job.clear(cell)
        missing = [cell for cell in cells[shard] if not job.read(cell)]
        if cluster:
            cluster.train(job.train, missing, job.folder, board)
            return
        for cell in missing:
            if result := job.train(cell, board):
                board.finished(*cell.key, result)


def _refuse_twins(cells: Sequence[folders.Cell]) -> None:
    """Raise InputError if two cells are the same under two names: a study would compare the cell
    with itself.
    """
    seen: dict[str, str] = {}
    for cell in cells:
        name = f"{cell.loss}, {plan.label(cell.condition)}" if cell.condition else cell.loss
        if cell.digest in seen:
            raise InputError(
                f"'{seen[cell.digest]}' and '{name}' are the same under two names; leave one out"
            )
        seen[cell.digest] = name


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def announcement(study: Study) -> list[str]:
    """List what to know before a study is paid for, one line each: its size, and whether it can end
    in a verdict at all.
    """
    losses, conditions = len(study.losses), len(plan.conditions(study))
    comparisons = (losses - 1) * conditions
    needed = statistics.seeds_needed(comparisons)
    lines = [
        f"{losses} losses x {_count(conditions, 'condition')} x {_count(study.seeds, 'seed')} of "
        f"{_count(study.training.epochs, 'epoch')}, {_count(comparisons, 'comparison')} with "
        f"{plan.baseline(study)} in {plan.metric(study).name}"
    ]
    if study.seeds < needed:
        lines.append(
            f"underpowered: {_count(comparisons, 'comparison')} under Holm's correction need at "
            f"least {needed} seeds before any verdict is possible; take --seeds {needed} now: "
            "later, all of them are trained again"
        )
    if study.tune is None:
        lines.append(
            "the learning rate is not tuned per loss (--tune lr=1e-4..1e-1 does): the report says "
            "so"
        )
    return lines
