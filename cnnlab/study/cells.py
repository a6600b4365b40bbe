"""Training a study's cells: a loss under a condition, all seeds together, each cell's result in a file of its own.

A study's folder holds `cells/` (results, each in one rename), `locks/` (who trains which now) and, while a cell is
trained, its checkpoints. The name of a result holds a digest of all that its numbers depend on, so a changed study
keeps the cells it has in common with the old one, and trains the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab import cache, loop, metrics, models, recipe, run_folder, stats
from cnnlab.checkpoint import Checkpoints
from cnnlab.config import FREE_ON_RESUME, Config
from cnnlab.data import source
from cnnlab.errors import Diverged, InputError
from cnnlab.losses import cross_entropy
from cnnlab.losses.spec import loss_from_config, needs_teacher, source_digest
from cnnlab.softmax import predict
from cnnlab.study import plan
from cnnlab.study.board import Board
from cnnlab.study.plan import Condition, Study
from cnnlab.study.results import Results

SAVE_SECONDS = 60.0  # a killed cell loses so much and an epoch at most


@dataclass(frozen=True)
class Cell:
    """A loss under a condition, and the stem of its files' names."""

    loss: str
    condition: Condition
    name: str


def run(study: Study, board: Board, command: str) -> Results | None:
    """Train what is still missing of a study.

    Args:
      study: what to compare.
      board: shows how far it is.
      command: to run again, for messages and the report.

    Returns:
      The results; None while cells are missing that are another shard's or that another process is training.

    Raises:
      InputError: whatever cannot be done; found before any training where it can be known.
      Stopped: a signal came; the cell under way is saved.
    """
    cache.keep_compilations()  # JAX looks whether there is a cache when it first compiles, and never again
    check(study)
    folder = Path(study.workdir).expanduser().absolute()
    cells = [Cell(loss, condition, _name(study, loss, condition)) for loss, condition in plan.grid(study)]
    try:
        for name in ("cells", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the study's folder {folder} cannot be written: {error.strerror}") from error
    which, of = plan.shard(study.shard)
    own = cells[which::of]
    with board.showing([(cell.loss, plan.label(cell.condition)) for cell in cells]):
        for cell in cells:
            if result := _read(folder, cell):
                board.finished(cell.loss, plan.label(cell.condition), result)
        for cell in own:
            with _claimed(folder / "locks" / cell.name) as mine:
                if not mine or _read(folder, cell):
                    continue
                board.started(cell.loss, plan.label(cell.condition))
                result = _train(study, cell, folder, board, command)
                run_folder.write_json(folder / "cells" / f"{cell.name}.json", result)
                shutil.rmtree(folder / f"{cell.name}.checkpoints", ignore_errors=True)
                board.finished(cell.loss, plan.label(cell.condition), result)
    found = [_read(folder, cell) for cell in cells]
    if missing := sum(result is None for result in found):
        board.say(f"{missing} of {len(cells)} cells are left to others; the report comes with the last one")
        return None
    rows: Any = [found[i : i + len(study.losses)] for i in range(0, len(cells), len(study.losses))]
    return Results(study, plan.conditions(study), rows, command)


def check(study: Study) -> None:
    """Refuse before any training what can be known to fail.

    Raises:
      InputError: no such data set, a loss that does not keep the contract or is not finite, too few images.
    """
    dataset = source.open_dataset(study.dataset, study.data_dir, study.image_size)
    labels = source.summary(dataset.train).labels
    for loss, condition in plan.grid(study):
        config = plan.config(study, loss, condition)
        counts = recipe.class_counts(config, labels, dataset.num_classes)
        _finite(config, dataset.num_classes, counts)


def _finite(config: Config, num_classes: int, counts: np.ndarray) -> None:
    """Call the loss once on ordinary logits.

    Raises:
      InputError: its values or gradients are not finite.
    """
    loss = loss_from_config(config, num_classes, counts)
    logits = jax.random.normal(jax.random.key(0), (2 * num_classes, num_classes))
    beside = {"teacher_logits": jnp.zeros_like(logits)} if needs_teacher(config) else {}
    labels = jnp.arange(2 * num_classes) % num_classes
    value, gradient = jax.value_and_grad(lambda z: jnp.sum(loss(z, labels, **beside)))(jnp.tanh(logits))
    for what, found in (("values", value), ("gradients", gradient)):
        if not np.all(np.isfinite(found)):
            raise InputError(f"loss {config.loss} gives {what} that are not finite for logits between -1 and 1")


def _name(study: Study, loss: str, condition: Condition) -> str:
    config = {k: v for k, v in plan.config(study, loss, condition).to_json().items() if k not in FREE_ON_RESUME}
    identity = [config, plan.seeds(study), plan.rates(study), source_digest(loss)]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    words = re.sub(r"[^\w.=+-]+", "-", f"{loss}--{plan.label(condition)}")
    return f"{words[:80]}-{digest[:12]}"


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether nobody else, on this machine or one that shares the folder, holds the lock; a dead process holds none."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _read(folder: Path, cell: Cell) -> dict[str, Any] | None:
    path = folder / "cells" / f"{cell.name}.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it to train that cell again") from error


def _train(study: Study, cell: Cell, folder: Path, board: Board, command: str) -> dict[str, Any]:
    """What a cell's file holds (`Results`)."""
    config, seeds = plan.config(study, cell.loss, cell.condition), plan.seeds(study)
    checkpoints = folder / f"{cell.name}.checkpoints"
    trials = _tune(study, config, checkpoints, board, command) if study.tune else None
    rate = _best(trials, study, cell.loss) if trials else config.learning_rate
    board.phase("training")
    trained = _fit(config, seeds, [rate] * len(seeds), checkpoints / "training", board, command)
    experiment, history, diverged = trained.experiment, trained.history, trained.diverged
    board.phase("testing")
    finite, variance = [i for i, step in enumerate(diverged) if step is None], None
    tests: list[Any] = [None] * len(seeds)
    if trained.state is not None:
        tests, right = _test(experiment, trained.state, len(seeds))
        if len(finite) > 1:
            variance = float(np.mean(np.var(right[finite].astype(np.float64), axis=0, ddof=1)))
    runs = [
        {
            "seed": seed,
            "diverged": diverged[i],
            "test": tests[i] if i in finite else None,
            "history": _own_rows(history, i),
            "gradient_norms": history[0]["gradient_norms"][i] if i in finite else [],
        }
        for i, seed in enumerate(seeds)
    ]
    seconds = sum(row["seconds"] for row in history)
    images = experiment.steps_per_epoch * config.batch_size * len(history) * len(seeds)
    return {
        "loss": cell.loss,
        "condition": cell.condition,
        "learning_rate": rate,
        "runs": runs,
        "example_variance": variance,
        "tuning": trials,
        "images": images,
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        "parameters": models.count_parameters(experiment.state.params) // len(seeds),
        "devices": f"{experiment.layout.device_count} x {experiment.layout.mesh.devices.flat[0].device_kind}",
        "versions": run_folder.versions(),
        **{name: experiment.facts[name] for name in ("class_names", "counts", "digest")},
    }


def _tune(study: Study, config: Config, folder: Path, board: Board, command: str) -> list[dict[str, Any]]:
    """The validation accuracy that each rate of the budget reaches; they are trained together."""
    rates, kept = plan.rates(study), folder / "tuning.json"
    if kept.exists():
        return json.loads(kept.read_text())["trials"]
    board.phase(f"tuning {len(rates)} rates")
    trained = _fit(config, [plan.TUNING_SEED] * len(rates), rates, folder / "tuning", board, command)
    reached = trained.history[-1]["validation_accuracy"] if trained.history else rates
    trials = [
        {"learning_rate": rate, "accuracy": accuracy if step is None else None}
        for rate, accuracy, step in zip(rates, reached, trained.diverged, strict=True)
    ]
    run_folder.write_json(kept, {"trials": trials})
    return trials


def _best(trials: Sequence[dict[str, Any]], study: Study, loss: str) -> float:
    sound = [trial for trial in trials if trial["accuracy"] is not None]
    if not sound:
        raise InputError(f"no learning rate of --tune {study.tune} trains {loss}: with each of them it diverges")
    return max(sound, key=lambda trial: trial["accuracy"])["learning_rate"]


@dataclass(frozen=True)
class Trained:
    """Several seeds at the end of their training.

    Attributes:
      experiment: which trained them.
      state: of them all; None if none was finite to the end.
      history: a row an epoch, a list over seeds in each.
      diverged: for each seed the step after which it was not finite, or None.
    """

    experiment: recipe.Experiment
    state: Any
    history: list[dict[str, Any]]
    diverged: list[int | None]


def _fit(config: Config, seeds: list[int], rates: list[float], folder: Path, board: Board, command: str) -> Trained:
    """Train seeds together, from where a killed process had saved."""
    experiment = recipe.build(config, board, seeds, rates)
    steps = loop.Plan(experiment.steps_per_epoch, config.epochs, 0, command, experiment.dispatch_steps, SAVE_SECONDS)
    history: list[dict[str, Any]] = []

    def record(row: dict[str, Any]) -> None:
        history.append(row)
        board.epoch(row)

    with Checkpoints(folder, keep=1) as checkpoints:
        start = loop.Progress(experiment.state, experiment.totals, [])
        start = loop.restore(checkpoints, start)[0] or start
        history += start.history
        try:
            state = loop.fit(
                start, steps, step=experiment.step, items=experiment.items, validate=experiment.validate,
                checkpoints=checkpoints, record=record, console=board,
            ).state  # fmt: skip
        except Diverged as error:  # the last of them
            diverged = _diverged(history, len(seeds))
            return Trained(experiment, None, history, [error.step if step is None else step for step in diverged])
    return Trained(experiment, state, history, _diverged(history, len(seeds)))


def _diverged(history: Sequence[dict[str, Any]], seeds: int) -> list[int | None]:
    """For each seed the first step after which it was not finite."""
    first: list[int | None] = [None] * seeds
    for row in reversed(history):
        first = [new if new is not None else old for new, old in zip(row["bad_step"], first, strict=True)]
    return first


def _own_rows(history: Sequence[dict[str, Any]], place: int) -> list[dict[str, Any]]:
    """A seed's epochs while it was finite, without what is of the machine."""
    left_out = ("seconds", "images_per_second", "bad_step", "gradient_norms")
    sound = [{k: v for k, v in row.items() if k not in left_out} for row in history if row["bad_step"][place] is None]
    return [{k: v[place] if isinstance(v, list) else v for k, v in row.items()} for row in sound]


def _test(experiment: recipe.Experiment, state: Any, seeds: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The metrics of each seed on the test set, and which images it was right about: bool[seeds, N]."""
    measure, parts, right = jax.jit(jax.vmap(_measured, (0, None))), [], []
    for batch in experiment.test():
        logits = experiment.logits(state.params, state.batch_stats, batch)
        sums, hits = jax.device_get(measure(logits, {k: batch[k] for k in ("label", "mask")}))
        parts.append(sums)
        right.append(hits[:, batch["mask"]])
    own = [metrics.summarise([jax.tree.map(lambda leaf, i=i: leaf[i], part) for part in parts]) for i in range(seeds)]
    return own, np.concatenate(right, 1)


def _measured(logits: jax.Array, batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
    label = batch["label"]
    return metrics.sums(logits, label, cross_entropy(logits, label), batch["mask"]), predict(logits) == label


def announcement(study: Study) -> list[str]:
    """What to know before a study is paid for, a line each: its size, and whether it can end in a verdict at all."""
    losses, conditions = len(study.losses), len(plan.conditions(study))
    comparisons = (losses - 1) * conditions
    needed = stats.seeds_needed(comparisons)
    lines = [
        f"{losses} losses x {conditions} conditions x {study.seeds} seeds of {study.epochs} epochs, "
        f"{comparisons} comparisons with {plan.baseline(study)} in {study.metric}"
    ]
    if study.seeds < needed:
        lines.append(
            f"underpowered: {comparisons} comparisons under Holm's correction need at least {needed} seeds before any "
            f"verdict is possible; take --seeds {needed}"
        )
    if study.tune is None:
        lines.append("the learning rate is not tuned per loss (--tune lr=1e-4..1e-1 does): the report says so")
    return lines
