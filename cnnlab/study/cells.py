"""A cell of a study, an arm under a condition with a block of seeds: read, or trained and kept."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from cnnlab import compilation_cache, files
from cnnlab.errors import InputError
from cnnlab.multihost import agree
from cnnlab.study import folder as folders
from cnnlab.study import plan, records
from cnnlab.study.board import Board
from cnnlab.study.folder import Cell, Digests
from cnnlab.study.plan import Study
from cnnlab.study.records import CellResult
from cnnlab.study.seeds import train_cell


@dataclass(frozen=True)
class Job:
    """What every process that trains cells of a study has.

    Attributes:
      study: whose cells they are.
      folder: of the study, shared by all that train it.
      digests: of each arm under each condition, as `check` computed them.
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
        digests = self.digests[cell.key]
        return agree.on_first(lambda: folders.read(self.folder, cell, digests, self.study))

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
                board.started(cell)
                digests = self.digests[cell.key]
                trained = train_cell(self.study, cell, self.folder, digests, board, self.command)
                self._check(cell, trained)
                path = folders.file(self.folder, cell)
                agree.on_first(lambda: files.write_sealed(path, trained.to_json()))
        if result := self.read(cell):
            agree.on_first(lambda: self.clear(cell))
        return result

    def _check(self, cell: Cell, trained: CellResult) -> None:
        """Refuse what could not be read again, such as a metric outside its own range."""
        try:
            records.check(trained, plan.metrics(self.study), plan.metric(self.study))
        except ValueError as error:
            raise InputError(f"{cell.name} cannot be kept: {error}") from error

    def clear(self, cell: Cell) -> None:
        """Remove the checkpoints of a finished cell, which a killed process may have left."""
        shutil.rmtree(folders.checkpoints(self.folder, cell.digest), ignore_errors=True)
