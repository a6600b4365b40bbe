"""The arrays behind the figures. What a diverged run lacks is NaN, or left out where counts are
added up.
"""

from __future__ import annotations

import numpy as np

from cnnlab import metrics
from cnnlab.study import plan, sequential, turns
from cnnlab.study.plan import Condition
from cnnlab.study.records import Trial
from cnnlab.study.results import ArmResult, Results, curve, padded
from cnnlab.study.turns import Course
from cnnlab.types import Metrics

VALIDATION = "validation_accuracy"


def gradient_norms(arm: ArmResult) -> np.ndarray:
    """Collect the gradient norms of the first steps: float64[seeds, steps]."""
    return padded(run.gradient_norms or [] for run in arm.runs)


def band(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation over seeds, float64[columns] each, of the finite values;
    the latter is NaN for one seed.
    """
    there = np.isfinite(table)
    count = there.sum(0)
    mean = np.where(there, table, 0).sum(0) / np.where(count, count, np.nan)
    squares = (np.where(there, table - mean, 0) ** 2).sum(0)
    return mean, np.sqrt(squares / np.where(count > 1, count - 1, np.nan))


def mean(seed_values: np.ndarray) -> float:
    """Average over seeds; NaN if a run diverged: the mean of the others would flatter the arm."""
    return float(seed_values.mean()) if np.all(np.isfinite(seed_values)) else np.nan


def interval(gaps: np.ndarray, alpha: float) -> tuple[float, float]:
    """Compute the interval of paired differences that holds at every look, for them alone."""
    low, high = sequential.interval(gaps, alpha)
    return float(low), float(high)


def sd(seed_values: np.ndarray) -> float:
    """Compute the standard deviation over seeds; NaN if a run diverged or there is only one."""
    return (
        float(seed_values.std(ddof=1))
        if len(seed_values) > 1 and np.all(np.isfinite(seed_values))
        else np.nan
    )


def tested(arm: ArmResult) -> list[Metrics]:
    """Return the test results of the runs that did not diverge."""
    return [run.test for run in arm.runs if run.diverged is None and run.test is not None]


def calibration(arm: ArmResult) -> np.ndarray:
    """Compute count, mean confidence and accuracy of each bin, pooled over seeds: float64[3, bins].
    The latter two are NaN for an empty bin; there are no bins if all runs diverged.
    """
    tests = tested(arm)
    if not tests:
        return np.full((3, 0), np.nan)
    count, confidence, hits = np.array([test["calibration"] for test in tests], np.float64).sum(0)
    some = np.where(count > 0, count, np.nan)
    return np.stack([count, confidence / some, hits / some])


def confusion(arm: ArmResult) -> np.ndarray | None:
    """Count the images of each true class that were predicted as each class, over all seeds:
    int64[K, K]; None if all runs diverged.
    """
    counts = None
    for test in tested(arm):
        matrix = metrics.confusion_matrix(test)
        counts = matrix if counts is None else counts + matrix
    return counts


def shares(counts: np.ndarray) -> np.ndarray:
    """Divide the rows of a confusion matrix by their sums: float64[K, K]; 0 for an empty class."""
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def along(results: Results, name: str) -> list[tuple[Condition, list[int]]]:
    """Find where a field takes two or more values while the others stay the same.

    Returns:
      (the other fields, numbers of the conditions, by increasing value of the field), for each
      combination of the others.
    """
    groups: list[tuple[Condition, list[int]]] = []
    for i, condition in enumerate(results.conditions):
        if name in condition:
            others = {k: v for k, v in condition.items() if k != name}
            group = next((places for other, places in groups if other == others), None)
            if group is None:
                groups.append((others, group := []))
            group.append(i)
    ordered = [
        (others, sorted(places, key=lambda i: results.conditions[i][name]))
        for others, places in groups
    ]
    return [(others, places) for others, places in ordered if len(places) > 1]


def courses(results: Results) -> dict[tuple[int, int], Course | None]:
    """Follow each arm's validation accuracy minus the baseline's of the same seeds along the
    epochs, where neither diverged: (condition, arm) by number; None where there are too few epochs
    or seeds.
    """
    base = results.arm_names.index(plan.baseline(results.study))
    confidence = 1 - results.study.alpha
    return {
        (i, j): turns.course(_finished_curve(arm), _finished_curve(row[base]), confidence)
        for i, row in enumerate(results.arms)
        for j, arm in enumerate(row)
        if j != base
    }


def _finished_curve(arm: ArmResult) -> np.ndarray:
    """Collect the validation accuracy, float64[seeds, epochs]; NaN for what diverged at the end."""
    has_diverged = np.array([run.diverged is not None for run in arm.runs])
    return np.where(has_diverged[:, None], np.nan, curve(arm, VALIDATION))


def at_edge(arm: ArmResult, name: str) -> list[float]:
    """List the values of a hyperparameter that tuning chose for the networks of an arm and that
    are the lowest or the highest of those tried.
    """
    chosen = [run.chosen[name] for run in arm.runs if name in run.chosen]
    trials = [trial for cell in arm.cells for trial in cell.tuning or []]
    tried = [trial.values[name] for trial in trials if name in trial.values]
    return [value for value in chosen if value in (min(tried), max(tried))]


def scores(trial: Trial) -> np.ndarray:
    """Return the scores of a trial, float64[seeds]; NaN where it diverged."""
    return np.array([np.nan if score is None else score for score in trial.scores])


def diverged(arm: ArmResult) -> list[tuple[int, int]]:
    """List (seed, step) of the runs that diverged."""
    return [(run.seed, run.diverged) for run in arm.runs if run.diverged is not None]
