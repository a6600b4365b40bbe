"""Trying values of hyperparameters: many networks of an arm, each scored on the validation split.

Networks are trained together, in one program, where they differ in what is data to it: in their
seeds, their learning rates, and whatever else of their losses, optimizers and schedules can be
traced. Values that shapes or Python depend on have a program each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from cnnlab import files, schema
from cnnlab.config import Config
from cnnlab.errors import InputError
from cnnlab.multihost import agree
from cnnlab.study import choices, plan
from cnnlab.study import folder as folders
from cnnlab.study.board import Board
from cnnlab.study.fit import Saving, Trained, fit
from cnnlab.study.folder import Cell, Digests
from cnnlab.study.plan import Study
from cnnlab.study.ranges import Point
from cnnlab.study.records import Size, Trial, check_score
from cnnlab.training import experiment
from cnnlab.training.program import LEARNING_RATE
from cnnlab.training.signals import pause
from cnnlab.types import JsonObject

WAIT_SECONDS = 1.0  # between two looks at what another process is doing
TOGETHER = 16  # networks that are trained in one program, at most


class Network(NamedTuple):
    """A network of a tuning: values, by the number of their trial, with a seed."""

    trial: int
    seed: int


Scores: TypeAlias = dict[Network, float | None]


@dataclass(frozen=True)
class _Scored:
    """A row of the file."""

    trial: Size
    seed: Size
    score: float | None


SCORED = ("trial", "seed", "score")


def trials(
    study: Study, cell: Cell, folder: Path, digests: Digests, board: Board, command: str
) -> list[Trial]:
    """Return what was tried for a cell; nothing where its arm has none of the hyperparameters.

    The trials are trained here, unless another process is doing that or has: cells of an arm share
    them, unless it is tuned per seed.

    Args as for `train_cell`.
    """
    config = folders.config(study, cell.arm, cell.condition)
    # As many networks as a mesh wants are not always there; the choice does not depend on it
    machine = dataclasses.replace(config.machine, mesh=None)
    output = dataclasses.replace(config.output, test_sets=())
    config = dataclasses.replace(config, machine=machine, output=output)
    tried = choices.tried(study, config.recipe)
    if not tried:
        return []
    seeds = plan.tuning_seeds(study, cell.seeds)
    name = f"{cell.arm_digest}--{plan.seed_range(seeds).replace(' ', '-')}"
    wanted = [Network(i, seed) for seed in seeds for i in range(len(tried))]
    data = (digests.digest, digests.teacher_digest)
    file = folder / "tuning" / f"{name}.json"
    tuning = Tuning(study, config, tried, wanted, data, file, command)
    while True:
        scores = agree.on_first(tuning.stored)
        if scores.keys() >= set(wanted):
            agree.on_first(tuning.clear)
            return [
                Trial(dict(point), [scores[Network(i, seed)] for seed in seeds])
                for i, point in enumerate(tried)
            ]
        with contextlib.ExitStack() as held:
            claim = folders.claimed(folder, f"{name}.tuning")
            # For all processes of this study
            if agree.on_first(functools.partial(held.enter_context, claim)):
                tuning.train(agree.on_first(tuning.stored), board)
                continue
        board.phase("waiting for the tuning of another process")
        pause(WAIT_SECONDS, command)


@dataclass(frozen=True)
class Tuning:
    """The networks that are trained to choose an arm's hyperparameters.

    Attributes:
      study: whose they are.
      config: of the arm, without values of theirs.
      tried: the values, by the number of their trial.
      wanted: all of the networks.
      data: SHA-256 of their data, and of a teacher's weights.
      file: of their scores.
      command: to run again, for messages.
    """

    study: Study
    config: Config
    tried: Sequence[Point]
    wanted: Sequence[Network]
    data: tuple[str, str | None]
    file: Path
    command: str

    def train(self, scores: Scores, board: Board) -> None:
        """Train the networks that have no score yet; those of a program have theirs as soon as it
        has ended.
        """
        for free, networks in self.programs(board):
            if scores.keys() >= set(networks):
                continue
            board.phase(f"tuning: {len(scores)} of {len(self.wanted)} networks are trained")
            config = self._with_values(networks[0].trial)
            values = {
                name: [self.tried[network.trial][name] for network in networks] for name in free
            }
            seeds = [network.seed for network in networks]
            saving = Saving(self.checkpoints / "-".join(map(str, networks[0])), self.command)
            trained = fit(config, seeds, values, saving, board)
            scores |= dict(zip(networks, _reached(self.study, trained), strict=True))
            agree.on_first(functools.partial(self.store, scores))

    @property
    def checkpoints(self) -> Path:
        """The folder where its networks are saved while they are trained."""
        return self.file.with_suffix(".checkpoints")

    def clear(self) -> None:
        """Remove the checkpoints of a finished tuning, which a killed process may have left."""
        files.remove(self.checkpoints)

    def _with_values(self, trial: int) -> Config:
        recipe = choices.with_point(self.config.recipe, self.tried[trial])
        return dataclasses.replace(self.config, recipe=recipe)

    def programs(self, board: Board) -> list[tuple[list[str], list[Network]]]:
        """Divide all networks into those that are trained together, whatever has a score: a tuning
        that was killed ends in the same numbers.

        Returns:
          For each program the names of the values that are data, and its networks.
        """
        names = list(self.tried[0])
        free = self._free(board)
        alike: dict[tuple[float, ...], list[Network]] = {}
        for network in self.wanted:
            point = self.tried[network.trial]
            fixed = tuple(point[name] for name in names if name not in free)
            alike.setdefault(fixed, []).append(network)
        programs = []
        for group in alike.values():
            number = -(-len(group) // TOGETHER)
            size = -(-len(group) // number)
            programs += [(free, group[i : i + size]) for i in range(0, len(group), size)]
        return programs

    def _free(self, board: Board) -> list[str]:
        """Return which hyperparameters can be data in a program, the learning rate among them."""
        rate = [name for name in self.tried[0] if name == LEARNING_RATE]
        others = [name for name in self.tried[0] if name != LEARNING_RATE]
        if not others:
            return rate
        built = experiment.build(self._with_values(0), board, [0, 1])
        free = [name for name in others if built.program.takes([name])]
        return rate + (free if built.program.takes(free) else [])

    def store(self, scores: Scores) -> None:
        """Write scores, each with its trial and seed, and what they were made of."""
        rows = [[*network, score] for network, score in scores.items()]
        files.write_sealed(self.file, {**self._made_of(), "scores": rows})

    def stored(self) -> Scores:
        """Read the scores of these trials that are there; none if the file is of other values or
        other data: then they are made again.

        Raises:
          InputError: it is damaged, or was edited.
        """
        try:
            stored = files.read_sealed(self.file)
            if {name: stored[name] for name in self._made_of()} != self._made_of():
                return {}
            rows = [dict(zip(SCORED, row, strict=True)) for row in stored["scores"]]
            read = [schema.build(_Scored, row) for row in rows]
            for row in read:
                check_score(row.score, plan.metric(self.study), "scores")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, *folders.TOO_MUCH) as error:
            raise InputError(
                f"{self.file} cannot be read ({error}); delete it to tune that arm again"
            ) from error
        return {Network(row.trial, row.seed): row.score for row in read}

    def _made_of(self) -> JsonObject:
        return {"values": [dict(point) for point in self.tried], "data": list(self.data)}


def _reached(study: Study, trained: Trained) -> list[float | None]:
    """Compute the study's metric of each network on the validation split; None where it diverged,
    or the metric is not finite.
    """
    if trained.progress is None:
        return [None] * len(trained.diverged)
    measured = trained.experiment.validate(trained.progress.state)
    values = [result[study.metric] for result in measured]
    return [
        value if step is None and math.isfinite(value) else None
        for value, step in zip(values, trained.diverged, strict=True)
    ]
