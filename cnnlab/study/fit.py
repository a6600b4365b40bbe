"""Training several networks together, all in one program: one configuration, other seeds, other
values of the hyperparameters that are data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from cnnlab.checkpoint.manager import Checkpoints
from cnnlab.config import Config
from cnnlab.errors import Diverged
from cnnlab.multihost import transfer
from cnnlab.study import folder as folders
from cnnlab.study.board import Board
from cnnlab.study.pairing import fingerprint
from cnnlab.training import experiment, run
from cnnlab.training.experiment import Experiment, Values
from cnnlab.training.loop import Observer, Row, Saver
from cnnlab.training.step import Progress

SAVE_SECONDS = 60.0  # a killed cell loses so much and an epoch at most
OF_THE_MACHINE = ("seconds", "images_per_second", "bad_step", "gradient_norms")


@dataclass(frozen=True)
class Trained:
    """Several seeds at the end of their training.

    Attributes:
      experiment: which trained them.
      progress: of them all; None if none was finite to the end.
      history: one row per epoch, a list over seeds in each.
      diverged: for each seed the number of its first step that was not finite, or None.
      initial_weights: of the first seed, as `pairing.fingerprint`.
    """

    experiment: Experiment
    progress: Progress | None
    history: list[Row]
    diverged: list[int | None]
    initial_weights: dict[str, str]


class _OnBoard(Observer):
    """An observer that keeps the start and the history of a training, and shows it."""

    def __init__(self, board: Board):
        self.board = board
        self.history: list[Row] = []
        self.initial_weights: dict[str, str] = {}  # empty where the training was resumed

    def begun(self, progress: Progress, rejected: Sequence[str]) -> None:
        del rejected
        self.history += progress.history
        if not np.any(transfer.fetch(progress.state.step)):
            self.initial_weights = _fingerprint(progress)

    def epoch(self, row: Row) -> None:
        self.history.append(row)
        self.board.epoch(row)


def _fingerprint(start: Progress) -> dict[str, str]:
    return fingerprint(transfer.fetch(jax.tree.map(lambda leaf: leaf[0], start.state.params)))


@dataclass(frozen=True)
class Saving:
    """Where networks are saved while they are trained.

    Attributes:
      folder: of their checkpoints.
      command: to run again, for messages.
    """

    folder: Path
    command: str

    @contextlib.contextmanager
    def opened(self, run: str) -> Iterator[Saver]:
        """Open the folder for what is trained as `run`."""
        with Checkpoints(self.folder, keep=1, run=run) as checkpoints:
            yield Saver(checkpoints, every_seconds=SAVE_SECONDS, command=self.command)


def fit(config: Config, seeds: list[int], values: Values, saving: Saving, board: Board) -> Trained:
    """Train seeds together, resuming from what a killed process saved.

    Args:
      config: of all of them.
      seeds: of the networks; a seed may be there several times.
      values: hyperparameters of which each network has a value, as for `experiment.build`.
      saving: where they are saved meanwhile.
      board: shows how far they are.
    """
    built = experiment.build(config, board, seeds, values)
    for line in built.notices():
        board.say(line)
    observer = _OnBoard(board)
    progress = None
    last = []
    with saving.opened(_identity(built, seeds, values)) as saver:
        try:
            progress = run.train(built, saver, observer, board)
        except Diverged as error:  # the last of them
            last = [{"bad_step": error.steps.tolist()}]
    first = _first_bad_steps([*observer.history, *last], len(seeds))
    initial_weights = observer.initial_weights or _fingerprint(built.start())
    return Trained(built, progress, observer.history, first, initial_weights)


def _identity(built: Experiment, seeds: Sequence[int], values: Values) -> str:
    """Hash all that networks depend on, their data too."""
    facts = built.facts
    settings = [folders.settings(built.config.recipe), built.parts.sources(), seeds, dict(values)]
    text = json.dumps([*settings, facts.digest, facts.teacher_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _first_bad_steps(history: Sequence[Row], seeds: int) -> list[int | None]:
    """Find for each seed the number, from 1, of its first step that was not finite; None if all
    were.
    """
    first: list[int | None] = [None] * seeds
    for row in reversed(history):
        first = [
            old if new is None else new + 1 for new, old in zip(row["bad_step"], first, strict=True)
        ]
    return first


def rows(trained: Trained, i: int) -> list[Row]:
    """Extract the epochs of the i-th seed, while it was finite."""
    finite = [
        {name: value for name, value in row.items() if name not in OF_THE_MACHINE}
        for row in trained.history
        if row["bad_step"][i] is None
    ]
    return [{k: v[i] if isinstance(v, list) else v for k, v in row.items()} for row in finite]
