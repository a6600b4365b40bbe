"""Trying values of hyperparameters: many networks of an arm, each scored on the validation split.

Networks are trained together, in one program, where they differ in what is data to it: in their
seeds, their learning rates, and whatever else of their losses, optimizers and schedules can be
traced. Values that shapes or Python depend on have a program each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from cnnlab import files
from cnnlab.config import Config
from cnnlab.multihost import agree
from cnnlab.study import choices, plan, schema
from cnnlab.study import folder as folders
from cnnlab.study.board import Board
from cnnlab.study.fit import Trained, fit, saver
from cnnlab.study.folder import Cell
from cnnlab.study.plan import Study
from cnnlab.study.ranges import Point
from cnnlab.study.records import Size, Trial
from cnnlab.training import experiment
from cnnlab.training.program import LEARNING_RATE
from cnnlab.training.signals import pause

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


def trials(study: Study, cell: Cell, folder: Path, board: Board, command: str) -> list[Trial]:
    """Return what was tried for a cell; nothing where its arm has none of the hyperparameters.

    The trials are trained here, unless another process is doing that or has: cells of an arm share
    them, unless it is tuned per seed.

    Args as for `train_cell`.
    """
    config = folders.config(study, cell.arm, cell.condition).replace(test_sets=())
    tried = choices.tried(study, config.recipe)
    if not tried:
        return []
    seeds = plan.tuning_seeds(study, cell.seeds)
    wanted = [Network(i, seed) for seed in seeds for i in range(len(tried))]
    name = f"{cell.arm_digest}--{plan.seed_range(seeds).replace(' ', '-')}"
    file = folder / "tuning" / f"{name}.json"
    while True:
        scores = agree.on_first(lambda: _stored(file, tried))
        if scores.keys() >= set(wanted):
            return [
                Trial(dict(point), [scores[Network(i, seed)] for seed in seeds])
                for i, point in enumerate(tried)
            ]
        with contextlib.ExitStack() as held:
            if _claim(held, folder, f"{name}.tuning"):
                scores = agree.on_first(lambda: _stored(file, tried))
                missing = [network for network in wanted if network not in scores]
                _score(study, config, tried, missing, scores, file, board, command)
                continue
        board.phase("waiting for the tuning of another process")
        pause(WAIT_SECONDS, command)


def _claim(held: contextlib.ExitStack, folder: Path, lock: str) -> bool:
    """Take a lock for all processes of this study, until `held` is closed."""
    return agree.on_first(lambda: held.enter_context(folders.claimed(folder, lock)))


def _score(  # noqa: PLR0913
    study: Study,
    config: Config,
    tried: Sequence[Point],
    missing: Sequence[Network],
    scores: Scores,
    file: Path,
    board: Board,
    command: str,
) -> None:
    """Train networks and add their scores; those of a program are kept as soon as it has ended."""
    checkpoints = file.with_suffix(".checkpoints")
    for free, networks in _programs(config, tried, missing, board):
        total = len(scores) + len(missing)
        board.phase(f"tuning: {len(networks)} networks, {len(scores)} of {total} are done")
        with_first = choices.with_point(config.recipe, tried[networks[0].trial])
        fixed = dataclasses.replace(config, recipe=with_first)
        values = {name: [tried[network.trial][name] for network in networks] for name in free}
        seeds = [network.seed for network in networks]
        place = checkpoints / "-".join(map(str, networks[0]))
        trained = fit(fixed, seeds, values, saver(place, command), board)
        scores |= dict(zip(networks, _reached(study, trained), strict=True))
        _store(file, tried, scores)
    files.remove(checkpoints)


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


def _programs(
    config: Config, tried: Sequence[Point], networks: Sequence[Network], board: Board
) -> Iterator[tuple[list[str], list[Network]]]:
    """Divide networks into those that are trained together.

    Yields:
      The names of the values that are data, and the networks of a program.
    """
    names = list(tried[0])
    free = _free(config, tried[0], board)
    alike: dict[tuple[float, ...], list[Network]] = {}
    for network in networks:
        point = tried[network.trial]
        alike.setdefault(tuple(point[n] for n in names if n not in free), []).append(network)
    for group in alike.values():
        number = -(-len(group) // TOGETHER)
        size = -(-len(group) // number)
        for start in range(0, len(group), size):
            yield free, group[start : start + size]


def _free(config: Config, point: Point, board: Board) -> list[str]:
    """Return which hyperparameters can be data in a program, besides the learning rate."""
    rate = [name for name in point if name == LEARNING_RATE]
    others = [name for name in point if name != LEARNING_RATE]
    if not others:
        return rate
    recipe = choices.with_point(config.recipe, point)
    built = experiment.build(dataclasses.replace(config, recipe=recipe), board, [0, 1])
    free = [name for name in others if built.program.takes([name])]
    return rate + (free if built.program.takes(free) else [])


def _store(file: Path, tried: Sequence[Point], scores: Scores) -> None:
    """Write scores, each with its trial and seed, and the values of the trials."""
    rows = [[*network, score] for network, score in scores.items()]
    values = {"values": [dict(point) for point in tried], "scores": rows}
    agree.on_first(lambda: files.write_sealed(file, values))


def _stored(file: Path, tried: Sequence[Point]) -> Scores:
    """Read the scores of these trials that are there; none if the file is damaged, or of other
    values: then they are made again.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        stored = files.read_sealed(file)
        if stored["values"] == [dict(point) for point in tried]:
            rows = [
                schema.build(_Scored, dict(zip(SCORED, row, strict=True)))
                for row in stored["scores"]
            ]
            return {Network(row.trial, row.seed): row.score for row in rows}
    return {}
