"""The numbers of a study, as its cells have left them: what the verdicts and the report are made
of.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cnnlab.study import plan, statistics
from cnnlab.study.manifest import Manifest
from cnnlab.study.plan import Condition, Study
from cnnlab.study.records import CellResult, SeedRun, Trial, unpacked
from cnnlab.types import Metrics


@dataclass(frozen=True)
class ArmResult:
    """An arm under a condition, with all its cells, in the order of their seeds.

    Attributes:
      name: as it was written.
      condition: under which it was trained.
      cells: one for each block of seeds; at least one.
    """

    name: str
    condition: Condition
    cells: tuple[CellResult, ...]

    @functools.cached_property
    def runs(self) -> list[SeedRun]:
        """The networks, in the order of their seeds."""
        return [run for cell in self.cells for run in cell.runs]

    @property
    def learning_rates(self) -> list[float]:
        """The rate of each network, configured or chosen by tuning."""
        return [learning_rate(cell, run) for cell in self.cells for run in cell.runs]

    @property
    def images(self) -> int:
        """How many images all networks were trained on."""
        return sum(cell.images for cell in self.cells)

    @property
    def seconds(self) -> float:
        """How long all cells were trained."""
        return sum(cell.seconds for cell in self.cells)

    @property
    def images_per_second(self) -> float | None:
        """Speed of training."""
        return self.images / self.seconds if self.seconds else None

    @property
    def parameters(self) -> int:
        """Parameters of a network."""
        return self.cells[0].parameters

    @property
    def devices(self) -> str:
        """What the cells were trained on."""
        return ", ".join(dict.fromkeys(cell.devices for cell in self.cells))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        return self.cells[0].class_names

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return self.cells[0].counts

    @functools.cached_property
    def example_variance(self) -> float | None:
        """Mean over test images of the variance over seeds of being right; None unless two were
        finite.
        """
        count = self.counts["test"]
        hits = [unpacked(run.hits, count) for run in self.runs if run.hits]
        if len(hits) < 2:
            return None
        return float(np.mean(np.var(np.array(hits, np.float64), axis=0, ddof=1)))


def learning_rate(cell: CellResult, run: SeedRun) -> float:
    """Return the rate of a network, configured or chosen by tuning."""
    return {**cell.config, **run.chosen}["learning_rate"]


def trials_of(study: Study, arm: ArmResult) -> list[Trial]:
    """Return what was tried for an arm: with the scores of the tuning seeds, which its cells share,
    or of all its seeds where it was tuned per seed; nothing where nothing was tuned.
    """
    of_cells = [cell.tuning or [] for cell in arm.cells]
    if not study.tune_per_seed:
        return of_cells[0]
    return [
        Trial(same[0].values, [score for trial in same for score in trial.scores])
        for same in zip(*of_cells, strict=True)
    ]


@dataclass(frozen=True)
class Family:
    """The comparisons that share an error rate, as they were planned and as they are.

    Attributes:
      manifest: what was planned.
      comparisons: how many there are, those planned and those added.
      deviations: what was done otherwise than planned, in words; empty if verdicts may be drawn.
      left_out: arms that were planned and trained, but are not asked for, each with its baseline:
        what is known of them stays known.
    """

    manifest: Manifest
    comparisons: int
    deviations: Sequence[str] = ()
    left_out: Sequence[tuple[ArmResult, ArmResult]] = ()


@dataclass(frozen=True)
class Results:
    """A finished study.

    Attributes:
      study: what was asked.
      conditions: of it.
      arms: for each condition, for each arm.
      command: which makes it again.
      family: of the study's comparisons.
    """

    study: Study
    conditions: list[Condition]
    arms: list[list[ArmResult]]
    command: str
    family: Family

    @property
    def arm_names(self) -> tuple[str, ...]:
        """What was compared, in the order of `arms`."""
        return plan.arm_names(self.study)

    @property
    def cells(self) -> list[CellResult]:
        """All cells."""
        return [cell for row in self.arms for arm in row for cell in arm.cells]


@dataclass(frozen=True)
class Failures:
    """Networks of an arm that failed.

    Attributes:
      runs: all of them.
      diverged: those that left the finite numbers, or whose metric did.
      collapsed: those with less than half the accuracy of the arm's median network.
    """

    runs: int
    diverged: int
    collapsed: int

    @property
    def highest_rate(self) -> float:
        """Upper 95 % bound of the rate of failures."""
        return statistics.highest_rate(self.diverged + self.collapsed, self.runs)


EXPLORATORY = "exploratory"
Pair: TypeAlias = tuple[np.ndarray, np.ndarray]  # values of an arm and of what it is compared with


@dataclass(frozen=True)
class Verdict:
    """What can be said of an arm against another, the baseline mostly, under a condition.

    Attributes:
      condition, arm: of it.
      against: the other arm.
      comparison: with that.
      failures: of the arm.
      exploratory: whether it deviates from the plan, so that its verdict does not count.
    """

    condition: Condition
    arm: str
    against: str
    comparison: statistics.Comparison
    failures: Failures
    exploratory: bool = False

    @property
    def kind(self) -> str:
        """better, worse, equivalent, undecided or exploratory."""
        return EXPLORATORY if self.exploratory else self.comparison.verdict

    @property
    def words(self) -> str:
        """The same with its extent."""
        return EXPLORATORY if self.exploratory else self.comparison.words


def failures(arm: ArmResult, metric: str) -> Failures:
    """Count the networks that diverged or collapsed."""
    accuracies = values(arm, "accuracy")
    finite = accuracies[np.isfinite(accuracies)]
    diverged = int(np.sum(np.isnan(values(arm, metric))))
    collapsed = int(np.sum(finite < np.median(finite) / 2)) if len(finite) else 0
    return Failures(len(arm.runs), diverged, collapsed)


def values(arm: ArmResult, metric: str, test_set: str | None = None) -> np.ndarray:
    """Collect a metric of the test set for each seed, float64[seeds]; NaN where the run diverged or
    the metric is not finite.

    Args:
      arm: of the study.
      metric: of it.
      test_set: one of the further test sets; None: the data set's own.
    """
    return _values([run.tested(test_set) for run in arm.runs], metric)


def last_values(arm: ArmResult, metric: str) -> np.ndarray:
    """Collect the same of the last weights, where the arm averages its weights; else NaN."""
    return _values([run.test_last for run in arm.runs], metric)


def _values(tests: Sequence[Metrics | None], metric: str) -> np.ndarray:
    per_run = [np.nan if test is None else test[metric] for test in tests]
    return np.where(np.isfinite(per_run), per_run, np.nan)


def differences(
    results: Results, metric: str, test_set: str | None = None
) -> dict[tuple[int, int], np.ndarray]:
    """Subtract the baseline's metric from each other arm's, for each seed of that: (condition, arm)
    by number -> float64[seeds]. What diverged counts as infinitely bad; where both did, as equal.

    Args as for `values`.
    """
    pairs = paired(results, metric, test_set)
    larger = plan.metrics(results.study)[metric].larger_is_better
    return {place: difference(arm, base, larger) for place, (arm, base) in pairs.items()}


def paired(
    results: Results, metric: str, test_set: str | None = None
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Pair each arm's values with the baseline's of the same seeds: (condition, arm) by number ->
    float64[seeds] of each. Args as for `values`.
    """
    study = results.study
    base = results.arm_names.index(plan.baseline(study))
    return {
        (i, j): pair_of(arm, row[base], metric, test_set)
        for i, row in enumerate(results.arms)
        for j, arm in enumerate(row)
        if j != base
    }


def pair_of(arm: ArmResult, baseline: ArmResult, metric: str, test_set: str | None = None) -> Pair:
    """Collect the values of two arms for the seeds that both have: float64[seeds] of each. Args as
    for `values`.
    """
    of_arm = values(arm, metric, test_set)
    of_baseline = values(baseline, metric, test_set)
    n = min(len(of_arm), len(of_baseline))
    return of_arm[:n], of_baseline[:n]


def difference(arm: np.ndarray, baseline: np.ndarray, larger_is_better: bool) -> np.ndarray:
    """Subtract a baseline's values from an arm's, over the seeds that both have: float64[n] of each
    -> float64[n]. NaN is infinitely bad; where both are, they are equal.
    """
    n = min(len(arm), len(baseline))
    arm, baseline = arm[:n], baseline[:n]
    worst = -np.inf if larger_is_better else np.inf
    arm_diverged, baseline_diverged = np.isnan(arm), np.isnan(baseline)
    gap = np.where(arm_diverged | baseline_diverged, 0.0, arm - baseline)
    gap = np.where(arm_diverged & ~baseline_diverged, worst, gap)
    return np.where(baseline_diverged & ~arm_diverged, -worst, gap)


def gaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Subtract what a second arm did from what a first did, over the seeds that both have: values
    float64[n] of each -> float64[n].
    """
    n = min(len(first), len(second))
    return first[:n] - second[:n]


def _is_known(arm: np.ndarray, baseline: np.ndarray) -> bool:
    """Return whether something is known of a pair: not all of both diverged."""
    return bool(np.any(np.isfinite(arm) | np.isfinite(baseline)))


def _rounding(arm: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Compute how much of a difference may be rounding; nothing where one diverged."""
    return np.nan_to_num(statistics.SAME * np.maximum(np.abs(arm), np.abs(baseline)))


def compare(study: Study, pairs: Sequence[Pair], comparisons: int) -> list[statistics.Comparison]:
    """Compare the first of each pair with the second, as one family, by the study's metric.

    Args:
      study: whose margin and alpha hold.
      pairs: values of both.
      comparisons: planned for the family.
    """
    larger = plan.metric(study).larger_is_better
    known_pairs = [pair for pair in pairs if _is_known(*pair)]
    compared = iter(
        statistics.compare(
            [difference(*pair, larger) for pair in known_pairs],
            plan.margin(study),
            larger,
            comparisons,
            study.alpha,
            [_rounding(*pair) for pair in known_pairs],
        )
    )
    return [
        next(compared) if _is_known(*pair) else statistics.unknown(len(pair[0])) for pair in pairs
    ]


def decide(results: Results) -> list[Verdict]:
    """Compare every other arm with the baseline under every condition, as one family, by the
    study's metric.
    """
    study = results.study
    places = paired(results, study.metric)
    left_out = [pair_of(*pair, study.metric) for pair in results.family.left_out]
    compared = compare(study, [*places.values(), *left_out], results.family.comparisons)
    return [
        Verdict(
            results.conditions[i],
            results.arm_names[j],
            plan.baseline(study),
            comparison,
            failures(results.arms[i][j], study.metric),
            bool(results.family.deviations),
        )
        for (i, j), comparison in zip(places, compared, strict=False)
    ]


def spread(arm: ArmResult) -> tuple[float, float]:
    """Compute the standard deviation of accuracy over seeds: on this test set, and on the whole
    distribution. NaN if a run diverged or there is only one.
    """
    accuracies = values(arm, "accuracy")
    variance = arm.example_variance
    if variance is None or not np.all(np.isfinite(accuracies)):
        return np.nan, np.nan
    fresh = statistics.distribution_sd(accuracies, variance, arm.counts["test"])
    return float(np.std(accuracies, ddof=1)), fresh


def hit_differences(arm: ArmResult, baseline: ArmResult) -> np.ndarray:
    """Subtract the baseline's hits from an arm's, for each seed and image of the test set:
    float64[seeds, images] in {-1, 0, 1}; NaN for a seed where one of the two diverged.
    """
    count = arm.counts["test"]
    num_seeds = min(len(arm.runs), len(baseline.runs))
    table = np.full((num_seeds, count), np.nan)
    for row, ours, theirs in zip(table, arm.runs, baseline.runs, strict=False):
        if ours.hits and theirs.hits:
            row[:] = unpacked(ours.hits, count)
            row -= unpacked(theirs.hits, count)
    return table


@dataclass(frozen=True)
class ConditionMean:
    """An arm's differences from the baseline, averaged over conditions at the same seed.

    Attributes:
      label: which conditions.
      arm: its name.
      differences: float64[seeds], for the seeds that the arm and the baseline have under all of the
        conditions.
    """

    label: str
    arm: str
    differences: np.ndarray


def over_conditions(results: Results) -> list[ConditionMean]:
    """Average the differences of the study's metric over all conditions and, where data sets are
    among them, over those of each data set. None for a single condition.

    What diverged under a condition makes the average of its seed infinitely bad; a seed for which
    that is so of both sides, under two conditions, counts as equal.
    """
    gaps = differences(results, results.study.metric)
    arms = dict.fromkeys(j for _, j in gaps)
    averages = []
    for label, places in _groups(results.conditions):
        for j in arms:
            rows = [gaps[i, j] for i in places]
            n = min(map(len, rows))
            with np.errstate(invalid="ignore"):  # inf - inf
                average = np.mean([row[:n] for row in rows], 0)
            average = np.where(np.isnan(average), 0.0, average)
            averages.append(ConditionMean(label, results.arm_names[j], average))
    return averages


def _groups(conditions: Sequence[Condition]) -> list[tuple[str, list[int]]]:
    """Group conditions, by number: all of them, and those of each data set if there are several
    data sets with further conditions; no group of one.
    """
    groups = [(f"all {len(conditions)} conditions", list(range(len(conditions))))]
    datasets = dict.fromkeys(c["dataset"] for c in conditions if "dataset" in c)
    if len(datasets) > 1:
        for name in datasets:
            of_set = [i for i, c in enumerate(conditions) if c["dataset"] == name]
            groups.append((f"dataset {name}", of_set))
    return [(label, places) for label, places in groups if len(places) > 1]


def padded(rows: Iterable[Sequence[float | None]]) -> np.ndarray:
    """Stack rows of unequal length into one array, float64[rows, longest]; NaN where there is
    nothing or nothing finite.
    """
    numbers = [[math.nan if value is None else value for value in row] for row in rows]
    table = np.full((len(numbers), max(map(len, numbers), default=0)), np.nan)
    for i, row in enumerate(numbers):
        table[i, : len(row)] = row
    return np.where(np.isfinite(table), table, np.nan)


def curve(arm: ArmResult, name: str) -> np.ndarray:
    """Collect a column of the history, such as validation_accuracy: float64[seeds, epochs]."""
    return padded([row.get(name) for row in run.history] for run in arm.runs)
