"""Training a cell: all its seeds together, after tuning, and their test."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from cnnlab import files, metrics, models
from cnnlab.checkpoint.manager import Checkpoints
from cnnlab.config import Config
from cnnlab.console import Console
from cnnlab.data.dataset import Split
from cnnlab.errors import Diverged
from cnnlab.multihost import agree, transfer
from cnnlab.study import folder as folders
from cnnlab.study import logits, outputs, plan, schema
from cnnlab.study.board import Board
from cnnlab.study.folder import Cell
from cnnlab.study.outputs import Tested
from cnnlab.study.pairing import fingerprint
from cnnlab.study.plan import Study
from cnnlab.study.records import CellResult, SeedRun, Trial, packed
from cnnlab.training import experiment, run, run_folder, testing
from cnnlab.training.experiment import Experiment
from cnnlab.training.loop import Observer, Row, Saver
from cnnlab.training.signals import pause
from cnnlab.training.step import Progress
from cnnlab.types import Metrics

WAIT_SECONDS = 1.0  # between two looks at what another process is doing
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
    """Fingerprint the initial weights of the first seed."""
    return fingerprint(transfer.fetch(jax.tree.map(lambda leaf: leaf[0], start.state.params)))


def train_cell(study: Study, cell: Cell, folder: Path, board: Board, command: str) -> CellResult:
    """Tune, train and test a cell, resuming from what a killed process saved.

    Args:
      study: whose it is.
      cell: of it.
      folder: of the study.
      board: shows how far it is.
      command: to run again, for messages.
    """
    config = folders.config(study, cell.arm, cell.condition)
    seeds = list(cell.seeds)
    trials = _tuned(study, cell, folder, board, command) if study.tune else []
    rate = _best_rate(trials, config.recipe.learning_rate)
    board.phase("training")
    rates = [rate] * len(seeds)
    saver = _saver(folders.checkpoints(folder, cell.digest) / "training", command)
    trained = _fit(config, seeds, rates, saver, board)
    board.phase("testing")
    keep = study.keep_logits == "all"
    tests = _tests(trained, keep)
    runs = _seed_runs(trained, seeds, tests)
    ood_splits = _ood_splits(study, trained.experiment)
    kept_digest = ""
    if keep and trained.progress:
        kept = outputs.kept(trained.experiment, trained.progress.state, tests, ood_splits, seeds)
        path = logits.file(folders.file(folder, cell))
        kept_digest = agree.on_first(lambda: logits.write(path, kept))
    seconds = sum(row["seconds"] for row in trained.history)
    epochs = len(trained.history)
    batch_size = config.recipe.batch_size
    images = trained.experiment.steps_per_epoch * batch_size * epochs * len(seeds)
    layout = trained.experiment.layout
    facts = trained.experiment.facts
    start, _, _ = trained.experiment.program.abstract_start()
    return CellResult(
        arm=cell.arm,
        condition=cell.condition,
        config=cell.config,
        learning_rate=rate,
        runs=runs,
        tuning=trials or None,
        images=images,
        seconds=seconds,
        images_per_second=images / seconds if seconds else None,
        parameters=models.count_parameters(start.params) // len(seeds),
        devices=f"{layout.device_count} x {layout.mesh.devices.flat[0].device_kind}",
        versions=run_folder.versions(),
        class_names=list(facts.class_names),
        counts=facts.counts,
        digest=facts.digest,
        teacher_digest=facts.teacher_digest,
        test_sets=facts.test_sets,
        initial_weights=trained.initial_weights or _fingerprint(trained.experiment.start()),
        ood_sets=testing.digests(ood_splits, Console("off")),
        logits_digest=kept_digest,
    )


def _ood_splits(study: Study, built: Experiment) -> dict[str, Split]:
    """Open the sets of images that are of none of the classes."""
    data_dir = study.machine.data_dir
    return testing.open_ood(
        study.ood_sets, built.parts, built.config.recipe, data_dir, built.data.dataset
    )


def _best_rate(trials: Sequence[Trial], configured: float) -> float:
    """Choose the rate of the best trial; without trials, the configured one.

    If every rate diverged, it is the lowest, which diverges as an untuned rate would: the study
    continues.
    """
    sound = [trial for trial in trials if trial.accuracy is not None]
    if sound:
        return max(sound, key=lambda trial: trial.accuracy or 0.0).learning_rate
    return trials[0].learning_rate if trials else configured


def _tuned(study: Study, cell: Cell, folder: Path, board: Board, command: str) -> list[Trial]:
    """Return the trials of a cell's tuning, which it shares with the arm's other cells: tuned here,
    unless another process is doing that or has.
    """
    file = folder / "tuning" / f"{cell.arm_digest}.json"
    rates = plan.rates(study)
    while True:
        if trials := agree.on_first(lambda: _stored_trials(file, rates)):
            return trials
        with contextlib.ExitStack() as held:
            if _claim(held, folder, f"{cell.arm_digest}.tuning"):
                # Another process may have ended between the look and the lock
                if trials := agree.on_first(lambda: _stored_trials(file, rates)):
                    return trials
                trials = _tune(study, cell, folder, board, command)
                _store_trials(file, trials)
                files.remove(folders.checkpoints(folder, cell.arm_digest))
                return trials
        board.phase("waiting for the tuning of another process")
        pause(WAIT_SECONDS, command)


def _claim(held: contextlib.ExitStack, folder: Path, lock: str) -> bool:
    """Take a lock for all processes of this study, until `held` is closed."""
    return agree.on_first(lambda: held.enter_context(folders.claimed(folder, lock)))


def _store_trials(file: Path, trials: Sequence[Trial]) -> None:
    values = {"trials": [dataclasses.asdict(trial) for trial in trials]}
    agree.on_first(lambda: files.write_sealed(file, values))


def _tune(study: Study, cell: Cell, folder: Path, board: Board, command: str) -> list[Trial]:
    """Measure the validation accuracy that each rate of the budget reaches; they are trained
    together.
    """
    rates = plan.rates(study)
    board.phase(f"tuning {len(rates)} rates")
    seeds = [plan.TUNING_SEED] * len(rates)
    config = folders.config(study, cell.arm, cell.condition).replace(test_sets=())
    saver = _saver(folders.checkpoints(folder, cell.arm_digest), command)
    trained = _fit(config, seeds, rates, saver, board)
    reached = trained.history[-1]["validation_accuracy"] if trained.history else [None] * len(rates)
    return [
        Trial(rate, accuracy if step is None else None)
        for rate, accuracy, step in zip(rates, reached, trained.diverged, strict=True)
    ]


def _stored_trials(file: Path, rates: Sequence[float]) -> list[Trial] | None:
    """Read the trials of these rates; None if they are not there, damaged, or of other rates: then
    they are made again.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        trials = [schema.build(Trial, trial) for trial in files.read_sealed(file)["trials"]]
        if [trial.learning_rate for trial in trials] == list(rates):
            return trials
    return None


@contextlib.contextmanager
def _saver(folder: Path, command: str) -> Iterator[Saver]:
    with Checkpoints(folder, keep=1) as checkpoints:
        yield Saver(checkpoints, every_seconds=SAVE_SECONDS, command=command)


def _fit(
    config: Config,
    seeds: list[int],
    rates: list[float],
    saving: contextlib.AbstractContextManager[Saver],
    board: Board,
) -> Trained:
    """Train seeds together, resuming from what a killed process saved."""
    built = experiment.build(config, board, seeds, rates)
    for line in built.notices():
        board.say(line)
    observer = _OnBoard(board)
    progress = None
    last = []
    with saving as saver:
        try:
            progress = run.train(built, saver, observer, board)
        except Diverged as error:  # the last of them
            last = [{"bad_step": error.steps.tolist()}]
    first = _first_bad_steps([*observer.history, *last], len(seeds))
    return Trained(built, progress, observer.history, first, observer.initial_weights)


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


def _tests(trained: Trained, keep: bool) -> dict[str | None, Tested]:
    """Test every seed on the test set, None, and on each further one by its name; no seed where
    none was finite.
    """
    if trained.progress is None:
        return {}
    built, state = trained.experiment, trained.progress.state
    splits = {None: None, **built.data.test_sets}
    return {name: outputs.test(built, state, split, keep) for name, split in splits.items()}


def _seed_runs(
    trained: Trained, seeds: Sequence[int], tests: Mapping[str | None, Tested]
) -> list[SeedRun]:
    """Record every seed of those trained, with its tests."""
    tests_last: Sequence[Metrics | None] = [None] * len(seeds)
    if trained.progress and trained.progress.state.average:
        tests_last = outputs.test(trained.experiment, trained.progress.state.last).metrics
    runs = []
    for i, seed in enumerate(seeds):
        rows = _rows(trained, i)
        if trained.diverged[i] is not None:
            runs.append(SeedRun(seed, trained.diverged[i], None, rows, []))
            continue
        test = tests[None]
        others = {
            name: metrics.without_large_confusion(tested.metrics[i])
            for name, tested in tests.items()
            if name is not None
        }
        norms = trained.history[0]["gradient_norms"][i]
        packed_hits = packed(test.hits[i])
        runs.append(
            SeedRun(seed, None, test.metrics[i], rows, norms, packed_hits, tests_last[i], others)
        )
    return runs


def _rows(trained: Trained, i: int) -> list[Row]:
    """Extract the epochs of the i-th seed, while it was finite."""
    rows = [
        {name: value for name, value in row.items() if name not in OF_THE_MACHINE}
        for row in trained.history
        if row["bad_step"][i] is None
    ]
    return [{k: v[i] if isinstance(v, list) else v for k, v in row.items()} for row in rows]
