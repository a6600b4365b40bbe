"""Every pair of arms compared, and the ranks that follow: a second family, next to the comparisons
with the baseline.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cnnlab.study import plan, statistics
from cnnlab.study.results import Results, Verdict, compare, failures, pair_of, values


@dataclass(frozen=True)
class Ranks:
    """Where an arm may stand among all arms of a study under a condition; 1 is best.

    Attributes:
      arm: its name.
      best: 1 + the number of arms that were decided to be better.
      worst: number of arms, without those that were decided to be worse.
      mean: of its rank at each seed, over the seeds that all arms have; equal arms share a rank.
      seeds: how many seeds these are.
    """

    arm: str
    best: int
    worst: int
    mean: float
    seeds: int

    @property
    def is_unbeaten(self) -> bool:
        """Whether no other arm was decided to be better."""
        return self.best == 1


def comparisons(results: Results) -> int:
    """Count the pairs of arms under all conditions. Arms that are planned, or were left out, count
    too: as many for each condition as the study's own family has room for.
    """
    conditions = len(results.conditions)
    num_arms = 1 + -(-results.family.comparisons // conditions)
    return conditions * num_arms * (num_arms - 1) // 2


def decide(results: Results) -> list[Verdict]:
    """Compare every arm with each that was named before it, under every condition, as one family of
    its own with the study's metric, margin and alpha.
    """
    study = results.study
    places = [
        (i, second, first)
        for i in range(len(results.conditions))
        for first, second in itertools.combinations(range(len(results.arm_names)), 2)
    ]
    pairs = [
        pair_of(results.arms[i][second], results.arms[i][first], study.metric)
        for i, second, first in places
    ]
    return [
        Verdict(
            results.conditions[i],
            results.arm_names[second],
            results.arm_names[first],
            comparison,
            failures(results.arms[i][second], study.metric),
            bool(results.family.deviations),
        )
        for (i, second, first), comparison in zip(
            places, compare(study, pairs, comparisons(results)), strict=True
        )
    ]


def ranks(results: Results, verdicts: Sequence[Verdict], place: int) -> list[Ranks]:
    """Rank the arms under the place-th condition, by what was decided of their pairs.

    Args:
      results: of the study.
      verdicts: of all pairs, as from `decide`. Those that are exploratory decide nothing.
      place: number of the condition.
    """
    names = results.arm_names
    num_better, num_worse = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for verdict in verdicts:
        if verdict.condition != results.conditions[place]:
            continue
        if verdict.kind == statistics.BETTER:
            winner, loser = verdict.arm, verdict.against
        elif verdict.kind == statistics.WORSE:
            winner, loser = verdict.against, verdict.arm
        else:
            continue
        num_better[loser] += 1
        num_worse[winner] += 1
    by_seed = seed_ranks(results, place)
    return [
        Ranks(name, 1 + num_better[name], len(names) - num_worse[name], float(row.mean()), len(row))
        for name, row in zip(names, by_seed, strict=True)
    ]


def seed_ranks(results: Results, place: int) -> np.ndarray:
    """Rank the arms at each seed that all have, by the study's metric: float64[arms, seeds]; 1 is
    best, equal arms share the mean of their ranks, and what diverged comes last.
    """
    from scipy import stats

    rows = [values(arm, results.study.metric) for arm in results.arms[place]]
    n = min(map(len, rows))
    table = np.array([row[:n] for row in rows])
    badness = -table if plan.metric(results.study).larger_is_better else table
    return stats.rankdata(np.where(np.isnan(table), np.inf, badness), axis=0)
