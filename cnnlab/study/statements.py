"""What a claim says of a study's networks, sentence by sentence, and whether it holds.

A statement compares a measure of one arm with a measure of another, seed by seed. All statements of
a claim are one family: its verdicts hold at every look and for all of them together
(`statistics.compare`). The rules turn a verdict into the claim's own words: "A beats B" holds if A
is better, unless within the margin; it is refuted if A is worse, or if the difference lies within
the margin. "A equals B" holds if the difference lies within the margin, and is refuted if it lies
beyond. Everything else is undecided. Seeds are added until it is also known on which side of the
margin an advantage lies (`Judged.is_open`), so that no verdict depends on when it was looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cnnlab.study import sequential, statistics
from cnnlab.study.results import difference
from cnnlab.study.statistics import Comparison
from cnnlab.types import JsonObject

HOLDS, REFUTED, UNDECIDED = "holds", "refuted", "undecided"
ALPHA = statistics.ALPHA

Values = Mapping[tuple[str, str], Mapping[str, np.ndarray]]
"""(condition, arm) -> measure -> float64[seeds], in the order of the seeds; NaN where a network
diverged."""
Rule = Callable[[Comparison], str]


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
      arm: of the study.
      measure: of its networks.
      seeds: which of them: first, step of a slice; (0, 1) is all.
    """

    arm: str
    measure: str
    seeds: tuple[int, int] = (0, 1)

    def of(self, values: Values, condition: str) -> np.ndarray:
        """Return its values: float64[n]."""
        first, step = self.seeds
        return values[condition, self.arm][self.measure][first::step]


@dataclass(frozen=True)
class Statement:
    """A sentence of a claim, with the rule that decides it. It is written before the run.

    Attributes:
      text: the sentence.
      first: the side that it is about.
      second: what that is compared with; None: zero.
      rule: comparison in margins, larger is better -> holds, refuted or undecided.
      margin: the difference that matters, above 0, in the unit of the measure.
      condition: under which both were trained, in words.
      larger_is_better: False where less of the measure is better.
      factor, unit: of the values that are shown: each is multiplied by the factor.
    """

    text: str
    first: Side
    second: Side | None
    rule: Rule
    margin: float
    condition: str = "as configured"
    larger_is_better: bool = True
    factor: float = 100
    unit: str = "points"

    @property
    def sides(self) -> list[Side]:
        """The sides that networks are of."""
        return [side for side in (self.first, self.second) if side]

    def pair(self, values: Values) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of both sides over the seeds that both have: float64[n] of each."""
        columns = [side.of(values, self.condition) for side in self.sides]
        n = min(map(len, columns))
        first, *second = [column[:n] for column in columns]
        return first, second[0] if second else np.zeros(n)

    def is_known(self, values: Values) -> bool:
        """Return whether a network of these seeds did not diverge."""
        first, second = self.pair(values)
        return bool(np.isfinite(first).any() or (self.second and np.isfinite(second).any()))

    def advantage(self, values: Values) -> np.ndarray:
        """Compute how much better the first side is, in margins: float64[seeds that both have]."""
        first, second = self.pair(values)
        gap = difference(first, second, self.larger_is_better)
        largest = np.nan_to_num(np.maximum(np.abs(first), np.abs(second)))
        gap = np.where(np.abs(gap) <= statistics.SAME * largest, 0.0, gap)
        return gap / self.margin if self.larger_is_better else -gap / self.margin

    def written(self) -> JsonObject:
        """Write down, as JSON values, what must not change once networks are trained."""
        return dataclasses.asdict(self) | {"rule": self.rule.__name__}


@dataclass(frozen=True)
class Judged:
    """A statement with its verdict.

    Attributes:
      statement: that was judged.
      verdict: holds, refuted, undecided or exploratory.
      comparison: behind it, in margins; larger is better.
    """

    statement: Statement
    verdict: str
    comparison: Comparison

    def shown(self, value: float) -> float:
        """Convert a value of the comparison to the unit of the statement."""
        sign = 1 if self.statement.larger_is_better else -1
        return sign * self.statement.factor * self.statement.margin * value

    @property
    def is_open(self) -> bool:
        """Whether more seeds may change the verdict: it is undecided, or it holds for an advantage
        that may yet be found too small to matter.
        """
        size_is_open = self.verdict == HOLDS and self.comparison.words == statistics.BETTER
        return self.verdict == UNDECIDED or size_is_open

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the difference, first minus second side, in the unit of the statement."""
        low, high = sorted(map(self.shown, (self.comparison.low, self.comparison.high)))
        return low, high

    @property
    def difference(self) -> str:
        """The mean difference with its interval."""
        low, high = self.interval
        return f"{self.shown(self.comparison.mean):+.3g} [{low:+.3g}, {high:+.3g}]"

    @property
    def numbers(self) -> str:
        """What decided it, in words."""
        c = self.comparison
        decided = f"decided at {c.decided}" if c.decided else "not decided"
        return (
            f"{self.difference} {self.statement.unit}, p {c.p:.3g}, n = {c.n}, {decided}: {c.words}"
        )


def judge(statements: Sequence[Statement], values: Values, alpha: float = ALPHA) -> list[Judged]:
    """Judge the statements of a claim as one family."""
    known = [statement.is_known(values) for statement in statements]
    advantages = [statement.advantage(values) for statement in statements]
    compared = iter(
        statistics.compare(
            [advantage for advantage, is_known in zip(advantages, known, strict=True) if is_known],
            margin=1.0,
            comparisons=len(statements),
            alpha=alpha,
        )
    )
    comparisons = [
        next(compared) if is_known else statistics.unknown(len(advantage))
        for advantage, is_known in zip(advantages, known, strict=True)
    ]
    return [
        Judged(statement, statement.rule(comparison), comparison)
        for statement, comparison in zip(statements, comparisons, strict=True)
    ]


def _is_within(comparison: Comparison) -> bool:
    return comparison.verdict == statistics.EQUIVALENT or comparison.extent == statistics.WITHIN


def better(comparison: Comparison) -> str:
    """Judge "A beats B": refuted if B is better, or if the difference is within the margin, which
    a small advantage is too.
    """
    if _is_within(comparison) or comparison.verdict == statistics.WORSE:
        return REFUTED
    return HOLDS if comparison.verdict == statistics.BETTER else UNDECIDED


def equal(comparison: Comparison) -> str:
    """Judge "A is as good as B, within the margin": refuted if the interval lies beyond it."""
    if _is_within(comparison):
        return HOLDS
    return REFUTED if comparison.extent == statistics.BEYOND else UNDECIDED


def not_better(comparison: Comparison) -> str:
    """Judge "A has no advantage over B that matters": refuted if A is better by more than the
    margin; it holds if the difference lies within it, or if A is worse.
    """
    if _is_within(comparison) or comparison.verdict == statistics.WORSE:
        return HOLDS
    is_beyond = comparison.extent == statistics.BEYOND
    return REFUTED if is_beyond else UNDECIDED


def indistinct(comparison: Comparison) -> str:
    """Judge "there is nothing to find": refuted by a verdict of better or worse; undecided if the
    seeds are too few for one.
    """
    if comparison.n < sequential.FIRST:
        return UNDECIDED
    differs = comparison.verdict in (statistics.BETTER, statistics.WORSE)
    return REFUTED if differs else HOLDS
