"""A published claim, put to the test: a study with a rule, fixed before the run, for what would
refute it.

The rules are about the words of a verdict (`cnnlab.study.report.claims.meanings`): "A beats B"
holds if A is better, unless within the margin; it is refuted if A is worse, or the difference lies
within the margin, equivalent or not. "A is as good as B" holds if the difference lies within the
margin, and is refuted if it lies beyond. Everything else is undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from cnnlab import files
from cnnlab.config import Training, flag
from cnnlab.errors import InputError
from cnnlab.study import report, sequential, statistics
from cnnlab.study.plan import MOST_SEEDS, Study
from cnnlab.study.results import EXPLORATORY, Results
from cnnlab.training import run_folder

HOLDS, REFUTED, UNDECIDED = "holds", "refuted", "undecided"
# What a claim is about
FIXED = (
    *("losses", "arms", "label_noise", "long_tail", "vary"),
    *("metric", "margin", "baseline", "alpha"),
)


@dataclass(frozen=True)
class Replication(Study):
    """Test a claim at a size that two CPU cores finish: a fifth of CIFAR-10, eight epochs, twelve
    seeds.
    """

    training: Training = field(
        default_factory=partial(
            Training, dataset="cifar10", validation=0.04, split_seed=None, epochs=8
        )
    )
    fraction: tuple[float, ...] = (0.2,)
    """Share of the training images that is used."""
    seeds: Annotated[int, f"[1, {MOST_SEEDS}]"] = 12
    """How many; nine comparisons need ten."""
    workdir: str = "runs/replications"
    """Folder of the results; replications share the cells that they have in common."""

    def __post_init__(self) -> None:
        super().__post_init__()
        claim = type(self)
        for name in FIXED:
            if claim is not Replication and getattr(self, name) != getattr(claim, name):
                raise InputError(
                    f"the claim is about {getattr(claim, name)}: {flag(name)} cannot be changed"
                )
        if not self.training.validation:
            raise InputError(
                "--validation must be above 0: claims are about accuracies on that split too"
            )


@dataclass(frozen=True)
class Judged:
    """A statement of a claim, with its verdict (holds, refuted, undecided or exploratory) and the
    numbers behind it.
    """

    statement: str
    verdict: str
    numbers: str


def better(comparison: statistics.Comparison) -> str:
    """Judge "A beats B": refuted if B is better, or if the difference is within the margin, which
    a small advantage is too.
    """
    within = comparison.verdict == statistics.EQUIVALENT or comparison.extent == statistics.WITHIN
    return _rule(
        comparison.verdict == statistics.BETTER and not within,
        comparison.verdict == statistics.WORSE or within,
    )


def equal(comparison: statistics.Comparison) -> str:
    """Judge "A is as good as B, within the margin": refuted if the interval lies beyond it."""
    within = comparison.verdict == statistics.EQUIVALENT or comparison.extent == statistics.WITHIN
    return _rule(within, comparison.extent == statistics.BEYOND)


def indistinct(comparison: statistics.Comparison) -> str:
    """Judge "there is nothing to find": refuted by a verdict of better or worse; undecided if the
    seeds are too few for one.
    """
    if comparison.n < sequential.FIRST:
        return UNDECIDED
    differs = comparison.verdict in (statistics.BETTER, statistics.WORSE)
    return _rule(not differs, differs)


def _rule(holds: bool, refuted: bool) -> str:
    return HOLDS if holds else REFUTED if refuted else UNDECIDED


def judged(
    statement: str,
    comparison: statistics.Comparison,
    rule: Callable[[statistics.Comparison], str],
    unit: str = "",
) -> Judged:
    """Judge a statement by a rule, and show the paired difference that decides it."""
    decided = f"decided at {comparison.decided}" if comparison.decided else "not decided"
    numbers = (
        f"{comparison.mean:+.4g}{unit} [{comparison.low:+.4g}, {comparison.high:+.4g}], p "
        f"{comparison.p:.3g}, n = {comparison.n}, {decided}: {comparison.words}"
    )
    return Judged(statement, rule(comparison), numbers)


def replicate(study: Replication, judge: Callable[[Results], Sequence[Judged]], name: str) -> None:
    """Train the study, write its report, and print and store the verdict on each statement.

    Args:
      study: whose results are judged.
      judge: results -> statements with verdicts.
      name: of the replication, for its folder of reports.
    """
    from cnnlab.study import driver

    folder = files.expanded(study.workdir).absolute() / name
    results = driver.conduct(study, run_folder.command(), folder)
    if results is None:
        return
    report.write(results, folder)
    verdicts = judge(results)
    if results.family.deviations:  # numbers to look at
        verdicts = [replace(verdict, verdict=EXPLORATORY) for verdict in verdicts]
    for verdict in verdicts:
        print(
            f"{verdict.verdict.upper():<11} {verdict.statement}\n            {verdict.numbers}",
            flush=True,
        )
    rows = [vars(verdict) for verdict in verdicts]
    files.write_json(folder / "verdict.json", {"statements": rows, "command": run_folder.command()})
    print(folder / "verdict.json")
