"""Training a cell: all its seeds together, after tuning, and their test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnlab import metrics, models
from cnnlab.console import Console
from cnnlab.data.dataset import Split
from cnnlab.multihost import agree
from cnnlab.study import choices, logits, outputs, tuning
from cnnlab.study import folder as folders
from cnnlab.study.board import Board
from cnnlab.study.fit import Saving, Trained, fit, rows
from cnnlab.study.folder import Cell, Digests
from cnnlab.study.outputs import Tested
from cnnlab.study.plan import Study
from cnnlab.study.ranges import Point
from cnnlab.study.records import CellResult, SeedRun, packed
from cnnlab.training import run_folder, testing
from cnnlab.training.experiment import Experiment
from cnnlab.types import Metrics


def train_cell(
    study: Study, cell: Cell, folder: Path, digests: Digests, board: Board, command: str
) -> CellResult:
    """Tune, train and test a cell, resuming from what a killed process saved.

    Args:
      study: whose it is.
      cell: of it.
      folder: of the study.
      digests: of the cell's data.
      board: shows how far it is.
      command: to run again, for messages.
    """
    seeds = list(cell.seeds)
    trials = tuning.trials(study, cell, folder, digests, board, command)
    chosen = choices.choose(study, trials, seeds)
    untuned = folders.config(study, cell.arm, cell.condition)
    config, values = choices.for_seeds(untuned, chosen)
    board.phase("training")
    saving = Saving(folders.checkpoints(folder, cell.digest) / "training", command)
    trained = fit(config, seeds, values, saving, board)
    board.phase("testing")
    keep = study.keep_logits == "all"
    tests = _tests(trained, keep)
    runs = _seed_runs(trained, seeds, tests, chosen)
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
        initial_weights=trained.initial_weights,
        ood_sets=testing.digests(ood_splits, Console("off")),
        logits_digest=kept_digest,
        arm_digest=cell.arm_digest,
    )


def _ood_splits(study: Study, built: Experiment) -> dict[str, Split]:
    """Open the sets of images that are of none of the classes."""
    data_dir = study.machine.data_dir
    return testing.open_ood(
        study.ood_sets, built.parts, built.config.recipe, data_dir, built.data.dataset
    )


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
    trained: Trained,
    seeds: Sequence[int],
    tests: Mapping[str | None, Tested],
    chosen: Sequence[Point],
) -> list[SeedRun]:
    """Record every seed of those trained, with its tests."""
    tests_last: Sequence[Metrics | None] = [None] * len(seeds)
    if trained.progress and trained.progress.state.average:
        tests_last = outputs.test(trained.experiment, trained.progress.state.last).metrics
    runs = []
    for i, seed in enumerate(seeds):
        history = rows(trained, i)
        values = dict(chosen[i])
        if trained.diverged[i] is not None:
            runs.append(SeedRun(seed, trained.diverged[i], None, history, [], chosen=values))
            continue
        test = tests[None]
        others = {
            name: metrics.without_large_confusion(tested.metrics[i])
            for name, tested in tests.items()
            if name is not None
        }
        norms = trained.history[0]["gradient_norms"][i]
        runs.append(
            SeedRun(
                seed,
                None,
                test.metrics[i],
                history,
                norms,
                packed(test.hits[i]),
                tests_last[i],
                others,
                values,
            )
        )
    return runs
