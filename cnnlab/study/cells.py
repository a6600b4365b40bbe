"""Training a study's cells: a loss under a condition, all seeds together."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab import compilation_cache, files, metrics, models
from cnnlab.checkpoint.manager import Checkpoints
from cnnlab.config import Config
from cnnlab.data import source
from cnnlab.errors import Diverged, InputError
from cnnlab.losses import cross_entropy
from cnnlab.multihost import agree, processes, transfer
from cnnlab.parts import Parts, resolve
from cnnlab.softmax import predict
from cnnlab.spec import where
from cnnlab.study import folder as folders
from cnnlab.study import on_ray, plan, statistics
from cnnlab.study.board import Board
from cnnlab.study.plan import Study
from cnnlab.study.results import Results
from cnnlab.training import devices, loop, network, recipe, run_folder
from cnnlab.training.step import Objective

SAVE_SECONDS = 60.0  # a killed cell loses so much and an epoch at most

Facts = dict[str, dict[str, str | None]]  # of each loss, by their names in a cell's file


def conduct(study: Study, command: str) -> Results | None:
    """Say what a study will be, and train it in view of whoever watches; as `run`."""
    board = Board(study.progress, study.epochs)
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
    folder = Path(study.workdir).expanduser().absolute()
    cells = [folders.cell(study, loss, condition) for loss, condition in plan.grid(study)]
    _refuse_twins(cells)
    plan.metric(study)  # refuse it before any training
    measured = list(plan.metrics(study))
    which, of = plan.shard(study.shard)
    shard = slice(which, None, of)
    remote = on_ray.joined(study, command) if study.executor == "ray" else contextlib.nullcontext()
    with remote as cluster:
        if cluster:
            board.say(
                "checking losses and data on a machine of Ray's"
            )  # which may have to wait for one
        here = lambda: agree.together(lambda: check(study, board))
        facts = cluster.call(check, study, Board("off")) if cluster else here()
        agree.agree("the data set or the teacher", facts)
        read = lambda cell: agree.on_first(
            lambda: folders.read(folder, cell, plan.seeds(study), facts[cell.loss], measured)
        )
        with board.showing([cell.key for cell in cells], shard):
            for cell in cells:
                if result := read(cell):
                    board.finished(*cell.key, result)
                    shutil.rmtree(
                        folders.checkpoints(folder, cell), ignore_errors=True
                    )  # a kill may have left them
            one, missing = (
                partial(train, study, folder, facts, command),
                [c for c in cells[shard] if not read(c)],
            )
            if cluster:
                cluster.train(one, missing, folder, board)
            else:
                for cell in missing:
                    if result := one(cell, board):
                        board.finished(*cell.key, result)
        found = [read(cell) for cell in cells]
    if missing := sum(result is None for result in found):
        board.say(
            f"{missing} of {len(cells)} cells are left to others; the report comes with the last "
            "one"
        )
        return None
    rows: Any = [found[i : i + len(study.losses)] for i in range(0, len(cells), len(study.losses))]
    return Results(study, plan.conditions(study), rows, command)


def train(
    study: Study, folder: Path, facts: Facts, command: str, cell: folders.Cell, board: Board
) -> dict[str, Any] | None:
    """Train one cell, if nobody has and nobody else does.

    Args:
      study: whose it is.
      folder: of the study, shared by all that train it.
      facts: as `check` found them.
      command: to run again, for messages.
      cell: the one.
      board: shows how far it is.

    Returns:
      What its file holds, whoever trained it; None while another process trains it.

    Raises:
      InputError: the file is damaged, or of other data, or the folder cannot be written.
      Stopped: a signal came; the cell is saved.
    """
    compilation_cache.keep_compilations()
    read = lambda: agree.on_first(
        lambda: folders.read(folder, cell, plan.seeds(study), facts[cell.loss], plan.metrics(study))
    )
    if result := read():
        return result
    with contextlib.ExitStack() as held:
        claim = folders.claimed(folder, cell.digest)
        mine = agree.on_first(lambda: held.enter_context(claim))  # for all processes of this study
        if mine and not read():
            board.started(*cell.key)
            trained = _train(study, cell, folder, board, command)
            path = folder / "cells" / f"{cell.words}-{cell.digest}.json"
            agree.on_first(lambda: files.write_json(path, trained))
    if result := read():
        agree.on_first(lambda: shutil.rmtree(folders.checkpoints(folder, cell), ignore_errors=True))
    return result


def _refuse_twins(cells: Sequence[folders.Cell]) -> None:
    """Raises InputError where two cells are one under two names: a study would compare it with
    itself.
    """
    seen: dict[str, str] = {}
    for cell in cells:
        name = f"{cell.loss}, {plan.label(cell.condition)}" if cell.condition else cell.loss
        if cell.digest in seen:
            raise InputError(
                f"'{seen[cell.digest]}' and '{name}' are the same under two names; leave one out"
            )
        seen[cell.digest] = name


def check(study: Study, board: Board) -> Facts:
    """Refuse before any training what can be known to fail.

    Returns:
      For each loss the digests of the training data and of its teacher's weights.

    Raises:
      InputError: no such data set, a loss that does not keep the contract or is not finite, too few
        images, too few devices.
    """
    # JAX looks whether there is a cache when it first compiles, and never again
    compilation_cache.keep_compilations()
    facts: Facts = {}
    opened: dict[str, Any] = {}
    for loss, condition in plan.grid(study):
        config = folders.config(study, loss, condition)
        parts = resolve(config)
        name = str(parts.dataset)
        if name not in opened:
            dataset = parts.open_dataset(config.data_dir, config.image_size)
            track = board.track(f"decoding {dataset.train.name}", "reads")
            keep = recipe.resident(config, dataset.train)
            summary = (
                source.decoded(dataset.train, track)[1]
                if keep
                else source.summary(dataset.train, track)
            )
            opened[name] = dataset, summary
        dataset, summary = opened[name]
        for together in (study.seeds, study.budget) if study.tune else (study.seeds,):
            recipe.layout(config, parts, together)
        recipe.check_parts(config, parts, dataset)
        clean, _ = recipe.training_set(config, dataset, summary.labels)
        counts = recipe.class_counts(config, parts.corrupt(clean, plan.seeds(study)[0]))
        _finite(config, parts, dataset.num_classes, counts)
        if loss not in facts:
            teacher = network.teacher_fn(config, dataset)[1] if parts.needs_teacher else None
            facts[loss] = {"digest": summary.digest(), "teacher_digest": teacher}
    return facts


def _finite(config: Config, parts: Parts, num_classes: int, counts: np.ndarray) -> None:
    """Call the loss once on a batch of ordinary logits.

    Raises:
      InputError: its values or gradients are not finite, or it cannot be called.
    """
    if "features" in parts.loss_asks:
        return  # what they are is the model's affair
    loss, batch = parts.build_loss(num_classes, counts), config.batch_size
    teacher = (lambda images: jnp.zeros_like(logits)) if parts.needs_teacher else None
    objective = Objective(loss, parts.loss_asks, teacher=teacher)
    logits = jnp.tanh(jax.random.normal(jax.random.key(0), (batch, num_classes)))
    labels = jnp.arange(batch) % num_classes

    def total(z: jax.Array) -> jax.Array:
        return jnp.sum(objective(z, labels, pixels=lambda: z, features=None, step=jnp.int32(0)))

    try:
        found = jax.value_and_grad(total)(logits)
    except Exception as error:
        raise InputError(
            f"loss {config.loss} fails on a batch of {batch}: {where(error)}"
        ) from error
    for what, values in zip(("values", "gradients"), found, strict=True):
        if not np.all(np.isfinite(values)):
            raise InputError(
                f"loss {config.loss} gives {what} that are not finite for logits between -1 and 1"
            )


def _train(
    study: Study, cell: folders.Cell, folder: Path, board: Board, command: str
) -> dict[str, Any]:
    """What a cell's file holds (`Results`)."""
    config, seeds = folders.config(study, cell.loss, cell.condition), plan.seeds(study)
    checkpoints = folders.checkpoints(folder, cell)
    trials = _tune(study, config, checkpoints, board, command) if study.tune else []
    sound = [trial for trial in trials if trial["accuracy"] is not None]
    # Where every rate diverged the lowest does, as a rate that was not tuned would: the study goes
    # on.
    rate = trials[0]["learning_rate"] if trials else config.learning_rate
    if sound:
        rate = max(sound, key=lambda trial: trial["accuracy"])["learning_rate"]
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
        "config": cell.config,
        "learning_rate": rate,
        "runs": runs,
        "example_variance": variance,
        "tuning": trials or None,
        "images": images,
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        "parameters": models.count_parameters(experiment.state.params) // len(seeds),
        "devices": f"{experiment.layout.device_count} x "
        f"{experiment.layout.mesh.devices.flat[0].device_kind}",
        "versions": run_folder.versions(),
        **{
            name: experiment.facts[name]
            for name in ("class_names", "counts", "digest", "teacher_digest")
        },
    }


def _tune(
    study: Study, config: Config, folder: Path, board: Board, command: str
) -> list[dict[str, Any]]:
    """The validation accuracy that each rate of the budget reaches; they are trained together."""
    rates, kept = plan.rates(study), folder / "tuning.json"
    if before := agree.on_first(lambda: _trials(kept)):
        return before
    board.phase(f"tuning {len(rates)} rates")
    trained = _fit(
        config, [plan.TUNING_SEED] * len(rates), rates, folder / "tuning", board, command
    )
    reached = trained.history[-1]["validation_accuracy"] if trained.history else [None] * len(rates)
    trials = [
        {"learning_rate": rate, "accuracy": accuracy if step is None else None}
        for rate, accuracy, step in zip(rates, reached, trained.diverged, strict=True)
    ]
    agree.on_first(lambda: files.write_json(kept, {"trials": trials}))
    return trials


def _trials(path: Path) -> list[dict[str, Any]] | None:
    with contextlib.suppress(OSError, ValueError, KeyError):  # not there, or damaged: tuned again
        return json.loads(path.read_text())["trials"]
    return None


@dataclass(frozen=True)
class Trained:
    """Several seeds at the end of their training.

    Attributes:
      experiment: which trained them.
      state: of them all; None if none was finite to the end.
      history: a row an epoch, a list over seeds in each.
      diverged: for each seed the number of its first step that was not finite, or None.
    """

    experiment: recipe.Experiment
    state: Any
    history: list[dict[str, Any]]
    diverged: list[int | None]


def _fit(
    config: Config, seeds: list[int], rates: list[float], folder: Path, board: Board, command: str
) -> Trained:
    """Train seeds together, from where a killed process had saved."""
    experiment = recipe.build(config, board, seeds, rates)
    steps = loop.Plan(
        experiment.steps_per_epoch,
        config.epochs,
        0,
        command,
        experiment.dispatch_steps,
        SAVE_SECONDS,
    )
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
                start,
                steps,
                step=experiment.step,
                items=experiment.items,
                validate=experiment.validate,
                checkpoints=checkpoints,
                record=record,
                console=board,
            ).state
        except Diverged as error:  # the last of them
            last = error.steps.tolist()
            return Trained(
                experiment, None, history, _diverged([*history, {"bad_step": last}], len(seeds))
            )
    return Trained(experiment, state, history, _diverged(history, len(seeds)))


def _diverged(history: Sequence[dict[str, Any]], seeds: int) -> list[int | None]:
    """For each seed the number, from 1, of its first step that was not finite."""
    first: list[int | None] = [None] * seeds
    for row in reversed(history):
        first = [
            old if new is None else new + 1 for new, old in zip(row["bad_step"], first, strict=True)
        ]
    return first


def _own_rows(history: Sequence[dict[str, Any]], place: int) -> list[dict[str, Any]]:
    """A seed's epochs while it was finite, without what is of the machine."""
    left_out = ("seconds", "images_per_second", "bad_step", "gradient_norms")
    sound = [
        {k: v for k, v in row.items() if k not in left_out}
        for row in history
        if row["bad_step"][place] is None
    ]
    return [{k: v[place] if isinstance(v, list) else v for k, v in row.items()} for row in sound]


def _test(
    experiment: recipe.Experiment, state: Any, seeds: int
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The metrics of each seed on the test set, and which images it was right about: bool[seeds,
    N].
    """
    measure = jax.jit(jax.vmap(partial(_measured, own=experiment.metrics), (0, None)))
    parts, right = [], []
    for batch in experiment.test():
        logits = experiment.logits(state.params, state.batch_stats, batch)
        known = experiment.layout.whole(
            {name: batch[name] for name in ("label", "mask")}, devices.BATCH
        )
        logits, known = (
            transfer.fetch((logits, known)) if processes.count() > 1 else (logits, known)
        )
        sums, hits = jax.device_get(measure(logits, known))
        parts.append(sums)
        right.append(hits[:, known["mask"]])
    by_seed = [
        [jax.tree.map(lambda leaf, i=i: leaf[i], part) for part in parts] for i in range(seeds)
    ]
    return [metrics.summarise(own, experiment.metrics) for own in by_seed], np.concatenate(right, 1)


def _measured(
    logits: jax.Array, batch: dict[str, jax.Array], own: Sequence[metrics.Metric]
) -> tuple[dict[str, jax.Array], jax.Array]:
    label = batch["label"]
    return metrics.sums(logits, label, cross_entropy(logits, label), batch["mask"], own), predict(
        logits
    ) == label


def announcement(study: Study) -> list[str]:
    """What to know before a study is paid for, a line each: its size, and whether it can end in a
    verdict at all.
    """
    losses, conditions = len(study.losses), len(plan.conditions(study))
    comparisons = (losses - 1) * conditions
    needed = statistics.seeds_needed(comparisons)
    count = lambda n, what: f"{n:,} {what}{'s' * (n != 1)}"
    lines = [
        f"{losses} losses x {count(conditions, 'condition')} x {count(study.seeds, 'seed')} of "
        f"{count(study.epochs, 'epoch')}, {count(comparisons, 'comparison')} with "
        f"{plan.baseline(study)} in {plan.metric(study).name}"
    ]
    if study.seeds < needed:
        lines.append(
            f"underpowered: {count(comparisons, 'comparison')} under Holm's correction need at "
            f"least {needed} seeds before any verdict is possible; take --seeds {needed} now: "
            "later, all of them are trained again"
        )
    if study.tune is None:
        lines.append(
            "the learning rate is not tuned per loss (--tune lr=1e-4..1e-1 does): the report says "
            "so"
        )
    return lines
