"""The numbers of a study, as its cells have left them: what the verdicts and the report are made
of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlab.study import plan, statistics
from cnnlab.study.plan import Condition, Study


@dataclass(frozen=True)
class Results:
    """A finished study.

    Attributes:
      study: what was asked.
      conditions: of it.
      cells: for each condition, for each loss, what the cell's file holds: loss, condition,
        learning_rate; runs: for each seed {seed, diverged (null, or the number of the first step
        that was not finite), test (null, or `metrics.summarise` of the test set), history
        (train.py's rows, a dict an epoch), gradient_norms (of the first steps)}; example_variance
        (mean over test images of the variance over seeds of being right; null for one seed), tuning
        (null, or a list of {learning_rate, accuracy} on the validation split; accuracy null: not
        finite), images (trained on), seconds, images_per_second, parameters, devices, versions,
        class_names, counts, digest, teacher_digest.
      command: which makes it again.
    """

    study: Study
    conditions: list[Condition]
    cells: list[list[dict[str, Any]]]
    command: str


@dataclass(frozen=True)
class Verdict:
    """What can be said of a loss beside the baseline under a condition; `comparison` is None where
    runs diverged.
    """

    condition: Condition
    loss: str
    comparison: statistics.Comparison | None
    diverged: int = 0


def values(cell: Mapping[str, Any], metric: str) -> np.ndarray:
    """A metric of the test set for each seed, float64[seeds]; NaN where the run diverged."""
    found = [np.nan if run["diverged"] is not None else run["test"][metric] for run in cell["runs"]]
    return np.where(np.isfinite(found), found, np.nan)


def differences(results: Results, metric: str) -> dict[tuple[int, int], np.ndarray]:
    """(condition, loss) by number -> a loss's metric less the baseline's, for each seed; for all
    but the baseline.
    """
    study = results.study
    base = study.losses.index(plan.baseline(study))
    return {
        (i, j): values(row[j], metric) - values(row[base], metric)
        for i, row in enumerate(results.cells)
        for j in range(len(study.losses))
        if j != base
    }


def verdicts(results: Results, metric: str | None = None) -> list[Verdict]:
    """For every condition and every loss but the baseline; Holm's correction is over all of them.

    Args:
      results: of the study.
      metric: None for the study's own, which was named before it was trained; others are to look
        at.
    """
    metric = metric or results.study.metric
    record = plan.metrics(results.study)[metric]
    margin = plan.margin(results.study) if metric == results.study.metric else record.margin
    found = differences(results, metric)
    whole = {key: row for key, row in found.items() if np.all(np.isfinite(row))}
    # What diverged counts in the correction: what was looked at does not depend on how it ended.
    others, larger = len(found) - len(whole), record.larger_is_better
    compared = (
        statistics.compare(np.array(list(whole.values())), margin, larger, others=others)
        if whole
        else []
    )
    by_key = dict(zip(whole, compared, strict=True))
    return [
        Verdict(
            results.conditions[i],
            results.study.losses[j],
            by_key.get((i, j)),
            int(np.sum(~np.isfinite(row))),
        )
        for (i, j), row in found.items()
    ]


def spread(cell: Mapping[str, Any]) -> tuple[float, float]:
    """Standard deviation of accuracy over seeds: on this test set, and over test sets
    drawn anew.
    """
    accuracies = values(cell, "accuracy")
    if len(accuracies) < 2 or not np.all(np.isfinite(accuracies)):
        return np.nan, np.nan
    images = cell["counts"]["test"]
    return float(np.std(accuracies, ddof=1)), statistics.distribution_sd(
        accuracies, cell["example_variance"], images
    )


def padded(rows: Iterable[Sequence[float | None]]) -> np.ndarray:
    """Rows of unequal length as one array, float64[rows, longest]; NaN where there is nothing or
    nothing finite.
    """
    found = [[math.nan if value is None else value for value in row] for row in rows]
    table = np.full((len(found), max(map(len, found), default=0)), np.nan)
    for i, row in enumerate(found):
        table[i, : len(row)] = row
    return np.where(np.isfinite(table), table, np.nan)


def curve(cell: Mapping[str, Any], name: str) -> np.ndarray:
    """A column of the history, such as validation_accuracy: float64[seeds, epochs]."""
    return padded([row.get(name) for row in run["history"]] for run in cell["runs"])
