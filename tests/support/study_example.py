"""Results of a study that nobody trained: drawn, the same each time."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cnnlab.study import manifest, plan
from cnnlab.study.arms import parse_arm
from cnnlab.study.choices import choose
from cnnlab.study.manifest import Manifest
from cnnlab.study.plan import Condition, Study
from cnnlab.study.ranges import parse_ranges, points
from cnnlab.study.records import CellResult, SeedRun, Trial, packed
from cnnlab.study.results import ArmResult, Family, Results

ECE_BINS = 15
SHIFTS = (0.0, 0.004, -0.03, 0.012, -0.001, 0.02, 0.006, -0.012)  # of the losses' accuracies
LOSSES = ("cross_entropy", "mean_squared_error", "focal,gamma=2")
VERSIONS = {"python": "3.11.9", "jax": "0.10.0", "machine": "Linux x86_64, 2 cores", "flags": {}}


def results(
    losses: tuple[str, ...] = LOSSES,
    classes: int = 10,
    images: int = 1000,
    steps: int = 64,
    diverged: dict[tuple[int, int], list[int]] | None = None,
    class_names: list[str] | None = None,
    **fields: Any,
) -> Results:
    """Drawn results.

    Args:
      losses: to compare.
      classes: K.
      images: in the test set.
      steps: for which the gradient's norm is known.
      diverged: (condition, loss) by number -> the seeds that diverged there.
      class_names: K; None for class 0, class 1, ...
      **fields: of the study: seeds, label_noise, tune, ...
    """
    study = Study.of(losses=losses, **fields)
    names = class_names or [f"class {k}" for k in range(classes)]
    rows = [
        [
            _arm(study, i, j, names, images, steps, (diverged or {}).get((i, j), []))
            for j in range(len(losses))
        ]
        for i in range(len(plan.conditions(study)))
    ]
    planned = Manifest(
        version=manifest.VERSION,
        cells=0,
        written="2026-11-01T08:30:00+00:00",
        metric=study.metric,
        margin=plan.margin(study),
        baseline=plan.baseline(study),
        arms=[],
        first_seed=study.first_seed,
        block=plan.block_width(study),
        alpha=study.alpha,
        comparisons=plan.comparisons(study),
        recipe={},
    )
    command = "python experiments/ablate.py --losses 'a&b' <x>"
    family = Family(planned, planned.comparisons)
    return Results(study, plan.conditions(study), rows, command, family)


def _arm(
    study: Study, place: int, j: int, names: list[str], images: int, steps: int, lost: list[int]
) -> ArmResult:
    cells = tuple(
        _cell(study, place, j, names, images, steps, lost, block) for block in plan.blocks(study)
    )
    return ArmResult(plan.arm_names(study)[j], plan.conditions(study)[place], cells)


def _cell(  # noqa: PLR0913
    study: Study, place: int, j: int, names: list[str], images: int, steps: int, lost: list[int],
    block: tuple[int, ...],
) -> CellResult:  # fmt: skip
    condition = plan.conditions(study)[place]
    level = (
        0.85 - 0.5 * condition.get("label_noise", 0.0) * (1 - 0.15 * j) + SHIFTS[j % len(SHIFTS)]
    )
    runs = [
        _run(study, condition, level, j, seed, names, images, steps, seed in lost) for seed in block
    ]
    trials = _trials(study, level, j, block)
    chosen = choose(study, trials, block)
    runs = [
        dataclasses.replace(run, chosen=dict(point))
        for run, point in zip(runs, chosen, strict=True)
    ]
    return CellResult(
        arm=plan.arm_names(study)[j],
        condition=condition,
        config={
            "learning_rate": study.training.learning_rate,
            **parse_arm(plan.arm_names(study)[j]),
        },
        runs=runs,
        tuning=trials or None,
        images=45_000 * study.training.epochs * len(block),
        seconds=812.25 + j,
        images_per_second=45_000 * study.training.epochs * len(block) / (812.25 + j),
        parameters=421_642,
        devices="2 x cpu",
        versions=dict(VERSIONS),
        class_names=names,
        counts={"train": 45_000, "validation": 5_000, "test": images},
        digest="ab" * 32,
        teacher_digest=None,
        test_sets=dict.fromkeys(plan.further_test_sets(study), "cd" * 32),
    )


def _trials(study: Study, level: float, j: int, block: tuple[int, ...]) -> list[Trial]:
    """Trials of a loss: a parabola in the logarithm of each value, diverged far above the best."""
    noise = 0.03 if study.tune_per_seed else 0.004
    trials = []
    ranges = [
        tuned
        for tuned in parse_ranges(study.tune)
        if tuned.setting != "loss" or plan.arm_names(study)[j].startswith("focal")
    ]
    for point in points(ranges, study.budget):
        scores = []
        for seed in plan.tuning_seeds(study, block):
            rng = np.random.default_rng([seed, j, len(trials), 3])
            best = {name: 10 ** (-1.9 - 0.3 * j) for name in point} | {"loss.gamma": 2.0 + j}
            away = [float(np.log10(value / best[name])) for name, value in point.items()]
            score = level - sum(0.08 * a**2 for a in away) + noise * float(rng.standard_normal())
            scores.append(None if max(away) > 1.6 else score)
        trials.append(Trial(dict(point), scores))
    return trials


def _run(  # noqa: PLR0913
    study: Study, condition: Condition, level: float, j: int, seed: int, names: list[str],
    images: int, steps: int,
    lost: bool,
) -> SeedRun:  # fmt: skip
    rng = np.random.default_rng([seed, 1])  # of the seed: what all losses have in common
    own = np.random.default_rng([seed, j, plan.conditions(study).index(condition), 2])
    level = level + 0.006 * rng.standard_normal() + 0.002 * own.standard_normal()
    history = [
        {
            "epoch": e,
            "step": 351 * e,
            "train_loss": 1 / e,
            "train_accuracy": level - 0.4 * 0.6**e + 0.004 * e,
        }
        | (
            {"validation_accuracy": level - 0.45 * 0.6**e + 0.004 * own.standard_normal()}
            if study.training.validation
            else {}
        )
        for e in range(1, study.training.epochs + 1)
    ]
    norms = (1.5 + j) * np.exp(-np.arange(steps) / 30 + 0.25 * own.standard_normal(steps))
    if lost:
        return SeedRun(seed, 77, test=None, history=history[: seed % 3], gradient_norms=[])
    test, hits = _test(level, own, len(names), images)
    others = {
        name: _test(level - 0.1 * place, own, len(names), images // 2)[0]
        for place, name in enumerate(plan.further_test_sets(study), 1)
    }
    return SeedRun(seed, None, test, history, norms.tolist(), packed(hits), test_sets=others)


def _test(
    level: float, rng: np.random.Generator, classes: int, images: int
) -> tuple[dict[str, Any], np.ndarray]:
    true = rng.integers(0, classes, images)
    right = rng.random(images) < level
    wrong = (true + 1 + rng.poisson(0.8, images) % (classes - 1)) % classes
    predicted = np.where(right, true, wrong)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (true, predicted), 1)
    confidence = np.clip(
        np.where(right, rng.beta(9, 1, images), rng.beta(4, 2, images)), 1 / classes, 1
    )
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    calibration = np.zeros((3, ECE_BINS))
    for row, what in zip(calibration, (np.ones(images), confidence, right), strict=True):
        np.add.at(row, bins, what)
    accuracy = float(right.mean())
    test = {
        "count": images,
        "loss": 0.5,
        "accuracy": accuracy,
        "top5": (1 + accuracy) / 2,
        "nll": 2.2 * (1 - accuracy) + 0.01 * float(rng.standard_normal()),
        "brier": 1.5 * (1 - accuracy),
        "ece": float(np.abs(calibration[2] - calibration[1]).sum() / images),
        "calibration": calibration.tolist(),
        "per_class_accuracy": [None] * classes,
        "confusion": confusion.tolist(),
    }
    return test, right
