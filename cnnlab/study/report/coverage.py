"""The tables of what the verdicts cover, and of what is known beyond them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnlab.html.blocks import Table
from cnnlab.study import pairs, plan, statistics
from cnnlab.study.crossed import CrossedMean, crossed_mean
from cnnlab.study.report import claims, series, tables
from cnnlab.study.report.numbers import ACCURACY, NONE, Scale, fixed, probability, scales
from cnnlab.study.results import (
    ConditionMean,
    Results,
    Verdict,
    differences,
    hit_differences,
    over_conditions,
)
from cnnlab.study.turns import Course


def crossed(results: Results) -> Table:
    """Tabulate the difference in accuracy from the baseline with its interval over new seeds and
    new test images, and what its variance consists of; no rows if none has two seeds.
    """
    base = results.arm_names.index(plan.baseline(results.study))
    confidence = 1 - results.study.alpha
    found = {
        (i, j): crossed_mean(hit_differences(arm, row[base]), confidence)
        for i, row in enumerate(results.arms)
        for j, arm in enumerate(row)
        if j != base
    }
    rows = [
        (plan.label(results.conditions[i]), results.arm_names[j], *_crossed_numbers(mean))
        for (i, j), mean in found.items()
        if any(np.isfinite(other.variance) for other in found.values())
    ]
    unit = ACCURACY.difference_unit
    head = ("condition", "arm", "seeds", "test images", f"difference ({unit})")
    parts = ("of the seeds", "of the images", "of both")
    return Table((*head, "interval over both", f"standard error ({unit})", *parts), rows)


def _crossed_numbers(found: CrossedMean) -> tuple[str, ...]:
    seeds = str(found.seeds)
    if found.left_out:
        seeds += f", {found.left_out} diverged"
    parts = (found.of_seeds, found.of_images, found.of_both)
    shares = [
        f"{100 * part / found.variance:.0f}{tables.NBSP}%" if found.variance > 0 else NONE
        for part in parts
    ]
    return (
        *(seeds, f"{found.images:,}", ACCURACY.difference(found.mean)),
        ACCURACY.interval(found.low, found.high, signs=True),
        ACCURACY.value(float(np.sqrt(found.variance))),
        *shares,
    )


def all_pairs(results: Results, verdicts: Sequence[Verdict]) -> Table:
    """Tabulate the comparisons of all pairs.

    Args:
      results: of the study.
      verdicts: as from `pairs.decide`.
    """
    scale = scales(results.study)[results.study.metric]
    head = (
        *("condition", "arm", "against", "verdict", _with_unit("mean difference", scale)),
        *("interval at every look", "decided at", "p (Holm)"),
    )
    rows = [
        (
            *(plan.label(verdict.condition), verdict.arm, verdict.against, tables.marked(verdict)),
            scale.difference(verdict.comparison.mean),
            scale.interval(verdict.comparison.low, verdict.comparison.high, signs=True),
            tables.decided(verdict),
            probability(verdict.comparison.p),
        )
        for verdict in verdicts
    ]
    return Table(head, rows, 4)


def ranks(results: Results, verdicts: Sequence[Verdict]) -> Table:
    """Tabulate the ranks that each arm may have, and its mean rank over the seeds. Args as for
    `all_pairs`.
    """
    rows = []
    for place, condition in enumerate(results.conditions):
        for rank in pairs.ranks(results, verdicts, place):
            span = f"{rank.best} to {rank.worst}" if rank.best < rank.worst else str(rank.best)
            numbers = (span, fixed(rank.mean, 2), str(rank.seeds))
            rows.append((plan.label(condition), rank.arm, *numbers))
    return Table(("condition", "arm", "possible ranks", "mean rank over seeds", "seeds"), rows)


def condition_means(results: Results) -> Table:
    """Tabulate the differences averaged over conditions; no rows for a single condition."""
    scale = scales(results.study)[results.study.metric]
    rows = [_condition_row(results, scale, found) for found in over_conditions(results)]
    head = ("condition", "arm", "seeds", _with_unit("mean difference", scale))
    return Table((*head, _with_unit("median", scale), "interval at every look"), rows)


def _condition_row(results: Results, scale: Scale, found: ConditionMean) -> tuple[str, ...]:
    gaps = found.differences
    with np.errstate(invalid="ignore"):  # the median of -inf and inf is NaN
        median = float(np.median(gaps))
    between = series.interval(gaps, results.study.alpha)
    return (
        *(found.label, found.arm, str(len(gaps)), scale.difference(series.mean(gaps))),
        *(scale.difference(median), scale.interval(*between, signs=True)),
    )


def courses(results: Results) -> Table:
    """Tabulate what the difference in validation accuracy does along the epochs; no rows if nothing
    is known of any.
    """
    followed = series.courses(results)
    rows = [
        (plan.label(results.conditions[i]), results.arm_names[j], *_course_words(course))
        for (i, j), course in followed.items()
        if any(followed.values())
    ]
    last = f"at the last epoch ({ACCURACY.difference_unit})"
    return Table(("condition", "arm", "along the epochs", "seeds", last, "interval"), rows, 3)


def _course_words(course: Course | None) -> tuple[str, ...]:
    if course is None:
        return ("fewer than two seeds or epochs", NONE, NONE, NONE)
    seeds = str(course.seeds)
    if course.left_out:
        seeds += f", {course.left_out} left out"
    between = ACCURACY.interval(course.low[-1], course.high[-1], signs=True)
    return claims.course(course), seeds, ACCURACY.difference(course.mean[-1]), between


def within_margin(results: Results) -> Table:
    """Tabulate the probability that the mean difference lies within the margin."""
    study = results.study
    margin = plan.margin(study)
    rows = []
    for (i, j), gaps in differences(results, study.metric).items():
        within = statistics.probability_within(gaps, margin)
        names = (plan.label(results.conditions[i]), results.arm_names[j])
        rows.append((*names, str(len(gaps)), fixed(within, 3)))
    shown = scales(study)[study.metric].with_unit(margin)
    return Table(("condition", "arm", "seeds", f"P(|μ| < {shown})"), rows)


def _with_unit(text: str, scale: Scale) -> str:
    return f"{text} ({scale.difference_unit})" if scale.difference_unit else text
