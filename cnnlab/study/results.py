"""The numbers of a study, as its cells have left them: what the verdicts and the report are made
of.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cnnlab.study import plan, statistics
from cnnlab.study.plan import Condition, Study
from cnnlab.types import JsonObject, Metrics, Row


@dataclass(frozen=True)
class Trial:
    """A learning rate that was tried, and the validation accuracy that it reached.

    `accuracy` is None where training did not stay finite.
    """

    learning_rate: float
    accuracy: float | None


@dataclass(frozen=True)
class SeedRun:
    """One network of a cell.

    Attributes:
      seed: of it.
      diverged: the number of its first step that was not finite; None: all were.
      test: `metrics.summarise` of the test set; None where it diverged.
      history: train.py's rows, one per epoch.
      gradient_norms: of its first steps.
      test_last: where its weights are averaged, the test of the last of them; else None.
      test_sets: the same as `test` of each further test set, by name.
    """

    seed: int
    diverged: int | None
    test: Metrics | None
    history: list[Row]
    gradient_norms: list[float]
    test_last: Metrics | None = None
    test_sets: dict[str, Metrics] = field(default_factory=dict)

    def tested(self, test_set: str | None) -> Metrics | None:
        """Return the test on one of the further test sets; None for `test_set`: on the data set's
        own.
        """
        return self.test if test_set is None else self.test_sets.get(test_set)


@dataclass(frozen=True)
class CellResult:
    """What a cell's file holds.

    Attributes:
      loss, condition: of the cell.
      config: as a run stores it.
      learning_rate: configured, or chosen by tuning.
      runs: one for each seed.
      example_variance: mean over test images of the variance over seeds of being right; None for
        one seed.
      tuning: the trials; None where nothing was tuned.
      images: trained on, by all seeds.
      seconds, images_per_second: of training.
      parameters: of a network.
      devices, versions: that it was trained with.
      class_names, counts, digest, teacher_digest, test_sets: of its data (`DataFacts`).
    """

    loss: str
    condition: Condition
    config: JsonObject
    learning_rate: float
    runs: list[SeedRun]
    example_variance: float | None
    tuning: list[Trial] | None
    images: int
    seconds: float
    images_per_second: float | None
    parameters: int
    devices: str
    versions: JsonObject
    class_names: list[str]
    counts: dict[str, int]
    digest: str
    teacher_digest: str | None
    test_sets: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """Convert the result to JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: JsonObject) -> CellResult:
        """Rebuild the result from the values of `to_json`; keys that this version does not know are
        ignored.

        Raises:
          KeyError, TypeError: something is missing, or of another form.
        """
        values = {"test_sets": {}, **values}  # not in the cells of earlier versions
        known = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        tuning = known["tuning"]
        known["runs"] = [SeedRun(**run) for run in known["runs"]]
        known["tuning"] = None if tuning is None else [Trial(**trial) for trial in tuning]
        return cls(**known)


@dataclass(frozen=True)
class Results:
    """A finished study.

    Attributes:
      study: what was asked.
      conditions: of it.
      cells: for each condition, for each loss.
      command: which makes it again.
    """

    study: Study
    conditions: list[Condition]
    cells: list[list[CellResult]]
    command: str


@dataclass(frozen=True)
class Verdict:
    """What can be said of a loss against the baseline under a condition; `comparison` is None where
    runs diverged.
    """

    condition: Condition
    loss: str
    comparison: statistics.Comparison | None
    diverged: int = 0


def values(cell: CellResult, metric: str, test_set: str | None = None) -> np.ndarray:
    """Collect a metric of the test set for each seed, float64[seeds]; NaN where the run diverged or
    the metric is not finite.

    Args:
      cell: of the study.
      metric: of it.
      test_set: one of the further test sets; None: the data set's own.
    """
    return _values([run.tested(test_set) for run in cell.runs], metric)


def last_values(cell: CellResult, metric: str) -> np.ndarray:
    """Collect the same of the last weights, where the cell averages its weights; else NaN."""
    return _values([run.test_last for run in cell.runs], metric)


def _values(tests: Sequence[Metrics | None], metric: str) -> np.ndarray:
    per_run = [np.nan if test is None else test[metric] for test in tests]
    return np.where(np.isfinite(per_run), per_run, np.nan)


def differences(
    results: Results, metric: str, test_set: str | None = None
) -> dict[tuple[int, int], np.ndarray]:
    """Subtract the baseline's metric from each other loss's, for each seed: (condition, loss) by
    number -> float64[seeds]. Args as for `values`.
    """
    study = results.study
    base = study.losses.index(plan.baseline(study))
    return {
        (i, j): values(row[j], metric, test_set) - values(row[base], metric, test_set)
        for i, row in enumerate(results.cells)
        for j in range(len(study.losses))
        if j != base
    }


def decide(results: Results, metric: str | None = None) -> list[Verdict]:
    """Compare every other loss with the baseline under every condition; Holm's correction covers
    all of these comparisons.

    Args:
      results: of the study.
      metric: None for the study's own, which was named before it was trained; others are to look
        at.
    """
    metric = metric or results.study.metric
    record = plan.metrics(results.study)[metric]
    margin = plan.margin(results.study) if metric == results.study.metric else record.margin
    gaps = differences(results, metric)
    finite = {key: row for key, row in gaps.items() if np.all(np.isfinite(row))}
    # What diverged counts in the correction: what was looked at does not depend on how it ended.
    others = len(gaps) - len(finite)
    larger = record.larger_is_better
    compared = (
        statistics.compare(np.array(list(finite.values())), margin, larger, others=others)
        if finite
        else []
    )
    by_key = dict(zip(finite, compared, strict=True))
    return [
        Verdict(
            results.conditions[i],
            results.study.losses[j],
            by_key.get((i, j)),
            int(np.sum(~np.isfinite(row))),
        )
        for (i, j), row in gaps.items()
    ]


def spread(cell: CellResult) -> tuple[float, float]:
    """Compute the standard deviation of accuracy over seeds: on this test set, and on the whole
    distribution. NaN if a run diverged or there is only one.
    """
    accuracies = values(cell, "accuracy")
    variance = cell.example_variance
    if variance is None or not np.all(np.isfinite(accuracies)):
        return np.nan, np.nan
    fresh = statistics.distribution_sd(accuracies, variance, cell.counts["test"])
    return float(np.std(accuracies, ddof=1)), fresh


def padded(rows: Iterable[Sequence[float | None]]) -> np.ndarray:
    """Stack rows of unequal length into one array, float64[rows, longest]; NaN where there is
    nothing or nothing finite.
    """
    numbers = [[math.nan if value is None else value for value in row] for row in rows]
    table = np.full((len(numbers), max(map(len, numbers), default=0)), np.nan)
    for i, row in enumerate(numbers):
        table[i, : len(row)] = row
    return np.where(np.isfinite(table), table, np.nan)


def curve(cell: CellResult, name: str) -> np.ndarray:
    """Collect a column of the history, such as validation_accuracy: float64[seeds, epochs]."""
    return padded([row.get(name) for row in run.history] for run in cell.runs)
