"""What stands in the report's tables, as text: HTML and Markdown take it as it is; the CSV holds
the full numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cnnlab.html.blocks import Table
from cnnlab.study import plan, statistics
from cnnlab.study.pairing import Pairing, pairing
from cnnlab.study.records import SeedRun
from cnnlab.study.report import series
from cnnlab.study.report.numbers import (
    ACCURACY,
    ECE,
    NONE,
    Scale,
    fixed,
    number_of,
    probability,
    scales,
    short,
    signed,
    words,
)
from cnnlab.study.results import (
    EXPLORATORY,
    ArmResult,
    Failures,
    Results,
    Verdict,
    difference,
    differences,
    failures,
    last_values,
    learning_rate,
    paired,
    spread,
    trials_of,
    values,
)
from cnnlab.study.statistics import Comparison

# Not by colour alone: a sign, and the word.
MARKS = {
    statistics.BETTER: "▲ better",
    statistics.WORSE: "▼ worse",
    statistics.EQUIVALENT: "≈ equivalent",
    statistics.UNDECIDED: "? undecided",
    EXPLORATORY: "· exploratory",
}
FAR = 1_000  # seeds; a decision that takes more is not in sight
NBSP = "\N{NO-BREAK SPACE}"
BEFORE = ("arm", "seed", "learning_rate", "diverged")
AFTER = ("epochs",)  # the metrics, in results.csv
# Of a comparison, in verdicts.csv
NUMBERS = (
    *("n", "mean", "median", "low", "high", "p", "p_equivalent", "p_sign_flip", "effect"),
    *("superiority", "decided", "expected"),
)


def marked(verdict: Verdict) -> str:
    """Format a verdict for a person, with its sign and extent."""
    return MARKS[verdict.kind] + verdict.words.removeprefix(verdict.kind)


def decided(verdict: Verdict) -> str:
    """Say after how many seeds a comparison was decided, of how many, or when to expect that."""
    comparison = verdict.comparison
    if comparison.decided:
        return f"seed {comparison.decided} of {comparison.n}"
    return f"open at {comparison.n}, {expected(comparison)}"


def expected(comparison: Comparison) -> str:
    """Say at which seed to expect a decision, if the differences continue as they are."""
    if comparison.expected is None or not comparison.expected < FAR:
        return "not within 1,000 seeds"
    return f"expect {max(comparison.expected, comparison.n + 1):,.0f}"


def failed(failures: Failures) -> str:
    """Format how many seeds failed, with the highest rate that they allow."""
    count = failures.diverged + failures.collapsed
    return f"{count}, ≤{NBSP}{100 * failures.highest_rate:.0f}{NBSP}%"


def _means(results: Results, metric: str) -> list[tuple[float, float]]:
    """Compute the means of the baseline and the arm over the seeds that both have, in the order of
    the verdicts.
    """
    pairs = paired(results, metric).values()
    return [(series.mean(baseline), series.mean(arm)) for arm, baseline in pairs]


def verdicts(results: Results, verdicts: Sequence[Verdict]) -> Table:
    """Tabulate the study's metric: each arm against the baseline under each condition.

    Args:
      results: of the study.
      verdicts: its verdicts.
    """
    scale = scales(results.study)[results.study.metric]
    unit = f" ({scale.difference_unit})" if scale.difference_unit else ""
    head = (
        *("condition", "arm", "verdict", f"mean difference{unit}", f"median{unit}"),
        *("interval at every look", "decided at", "p (Holm)", "failed"),
    )
    rows = []
    for verdict in verdicts:
        c = verdict.comparison
        names = (plan.label(verdict.condition), verdict.arm, marked(verdict))
        numbers = (
            scale.difference(c.mean),
            scale.difference(c.median),
            scale.interval(c.low, c.high, signs=True),
            decided(verdict),
            probability(c.p),
            failed(verdict.failures),
        )
        rows.append((*names, *numbers))
    return Table(head, rows, 3)


def details(results: Results, verdicts: Sequence[Verdict]) -> Table:
    """Tabulate what else is known of the comparisons."""
    scale = scales(results.study)[results.study.metric]
    head = (
        *("condition", "arm", f"baseline’s {scale.label}", f"arm’s {scale.label}"),
        *("p not equivalent (Holm)", "sign flips", "d_z", f"P(A{NBSP}>{NBSP}B)"),
    )
    rows = []
    for verdict, means in zip(verdicts, _means(results, results.study.metric), strict=True):
        c = verdict.comparison
        of_baseline, of_arm = map(scale.value, means)
        p = (probability(c.p_equivalent), probability(c.p_sign_flip))
        sizes = (signed(c.effect, 2), fixed(c.superiority, 2))
        rows.append((plan.label(verdict.condition), verdict.arm, of_baseline, of_arm, *p, *sizes))
    return Table(head, rows)


def others(results: Results) -> Table:
    """Tabulate the metrics that the verdicts are not about: differences with their intervals."""
    shown = scales(results.study)
    metrics = [name for name in shown if name != results.study.metric]
    gaps = {name: differences(results, name) for name in metrics}
    head = ["condition", "arm"]
    for name in metrics:
        unit = shown[name].difference_unit
        head += [shown[name].name + (f" ({unit})" if unit else ""), "interval"]
    rows = []
    for i, j in gaps[metrics[0]]:
        row = [plan.label(results.conditions[i]), results.arm_names[j]]
        for name in metrics:
            gap = gaps[name][i, j]
            row += [
                shown[name].difference(series.mean(gap)),
                shown[name].interval(*series.interval(gap, results.study.alpha), signs=True),
            ]
        rows.append(tuple(row))
    return Table(tuple(head), rows)


def _per_cell(
    results: Results, head: Sequence[str], row: Callable[[ArmResult], tuple[str, ...]]
) -> Table:
    """Build a table with a row for each condition and arm: `row(arm)` -> its columns after these
    two.
    """
    rows = [
        (plan.label(condition), arm.name, *row(arm))
        for condition, arms in zip(results.conditions, results.arms, strict=True)
        for arm in arms
    ]
    return Table(("condition", "arm", *head), rows)


def seeds(results: Results) -> Table:
    """Tabulate the study's metric over seeds."""
    metric = results.study.metric
    scale = scales(results.study)[metric]

    def row(arm: ArmResult) -> tuple[str, ...]:
        seed_values = values(arm, metric)
        finite = seed_values[np.isfinite(seed_values)]
        ends = (finite.min(), finite.max()) if len(finite) else (np.nan, np.nan)
        numbers = (series.mean(seed_values), series.sd(seed_values), *ends)
        return (str(len(seed_values)), failed(failures(arm, metric)), *map(scale.value, numbers))

    head = ("seeds", "failed", f"mean {scale.label}", "sd", "lowest", "highest")
    return _per_cell(results, head, row)


def paired_draws(results: Results) -> Table:
    """Tabulate what each arm has in common with the baseline at the same seed."""
    base = results.arm_names.index(plan.baseline(results.study))
    rows = []
    for condition, arms in zip(results.conditions, results.arms, strict=True):
        baseline = arms[base].cells[0]
        for j, arm in enumerate(arms):
            if j != base:
                shared = pairing(arm.cells[0], baseline)
                rows.append((plan.label(condition), arm.name, *_pairing_words(shared)))
    head = ("condition", "arm", "images and labels", "batches", "augmentation draws")
    return Table((*head, "initial weights"), rows, 6)


def _pairing_words(shared: Pairing) -> tuple[str, str, str, str]:
    batches = {True: "the same", False: "different", None: "same order, another size"}
    draws = ", ".join(shared.operations) or "none"
    if shared.operations:
        draws += ": the same"
    if shared.other_operations:
        draws += f"; only in one: {', '.join(shared.other_operations)}"
    weights = NONE if shared.weights is None else f"{100 * shared.weights:.0f} % the same"
    if shared.weights in (0, 1):
        weights = "the same" if shared.weights else "different"
    images = "the same" if shared.images else "different"
    return images, batches[shared.batches], draws, weights


def averages(results: Results) -> Table:
    """Tabulate the study's metric of averaged weights next to that of the last weights of the same
    runs, for the arms that average them.
    """
    metric = results.study.metric
    scale = scales(results.study)[metric]
    unit = f" ({scale.difference_unit})" if scale.difference_unit else ""
    rows = []
    for condition, arms in zip(results.conditions, results.arms, strict=True):
        for arm in arms:
            averaged, last = values(arm, metric), last_values(arm, metric)
            if np.all(np.isnan(last)):
                continue
            means = [scale.value(series.mean(seed_values)) for seed_values in (averaged, last)]
            gap = difference(averaged, last, plan.metric(results.study).larger_is_better)
            between = scale.interval(*series.interval(gap, results.study.alpha), signs=True)
            mean = scale.difference(series.mean(gap))
            rows.append((plan.label(condition), arm.name, *means, mean, between))
    label = scale.label
    head = ("condition", "arm", f"averaged, {label}", f"last, {label}", f"difference{unit}")
    return Table((*head, "interval"), rows)


def test_set(results: Results, name: str) -> Table:
    """Tabulate the study's metric on a further test set, with the differences from the baseline.

    Args:
      results: of the study.
      name: of the test set.
    """
    metric = results.study.metric
    scale = scales(results.study)[metric]
    unit = f" ({scale.difference_unit})" if scale.difference_unit else ""
    gaps = differences(results, metric, name)
    rows = []
    for i, (condition, arms) in enumerate(zip(results.conditions, results.arms, strict=True)):
        for j, arm in enumerate(arms):
            seed_values = values(arm, metric, name)
            numbers = [scale.value(series.mean(seed_values)), scale.value(series.sd(seed_values))]
            compared = [NONE, NONE]
            if (i, j) in gaps:
                gap = gaps[i, j]
                between = scale.interval(*series.interval(gap, results.study.alpha), signs=True)
                compared = [scale.difference(series.mean(gap)), between]
            rows.append((plan.label(condition), arm.name, *numbers, *compared))
    head = ("condition", "arm", f"mean {scale.label}", "sd", f"difference{unit}", "interval")
    return Table(head, rows)


def spreads(results: Results) -> Table:
    """Tabulate how much accuracy differs between seeds, on this test set and beyond it."""
    head = ("sd on the test set (pp)", "sd on the distribution (pp)")
    return _per_cell(results, head, lambda arm: tuple(fixed(100 * sd, 3) for sd in spread(arm)))


def last_epoch(results: Results, columns: Sequence[str]) -> Table:
    """Tabulate where the learning curves end: mean ± sd over seeds."""

    def row(arm: ArmResult) -> tuple[str, ...]:
        finished = [run.diverged is None and bool(run.history) for run in arm.runs]
        last = [
            [
                run.history[-1].get(name) if there else None
                for run, there in zip(arm.runs, finished, strict=True)
            ]
            for name in columns
        ]
        return tuple(spread_of(ACCURACY, np.array(seed_values, np.float64)) for seed_values in last)

    head = tuple(f"{name.replace('_', ' ')} (%)" for name in columns)
    return _per_cell(results, head, row)


def spread_of(scale: Scale, seed_values: np.ndarray) -> str:
    """Format mean ± sd over seeds; no sd for one seed."""
    sd = series.sd(seed_values)
    return scale.value(series.mean(seed_values)) + (
        f" ± {scale.value(sd)}" if np.isfinite(sd) else ""
    )


def calibration(results: Results) -> Table:
    """Tabulate the ECE over seeds."""

    def row(arm):
        return (spread_of(ECE, values(arm, "ece")),)

    return _per_cell(results, ("ECE (%), mean ± sd",), row)


def tuning(results: Results) -> Table:
    """Tabulate what was chosen for each arm, a row for each hyperparameter."""
    rows = []
    for condition, arms in zip(results.conditions, results.arms, strict=True):
        for arm in arms:
            for name in arm.runs[0].chosen:
                values = [run.chosen[name] for run in arm.runs]
                inside = "at the edge" if series.at_edge(arm, name) else "inside"
                where = plan.label(condition), arm.name
                rows.append((*where, words(name), _extent(values), inside))
    return Table(("condition", "arm", "hyperparameter", "chosen", "in the range"), rows, words=3)


def trials(results: Results) -> Table:
    """Tabulate everything that was tried, with its scores on the validation split."""
    study = results.study
    scale = scales(study)[study.metric]
    rows = []
    for condition, arms in zip(results.conditions, results.arms, strict=True):
        for arm in arms:
            chosen = [run.chosen for run in arm.runs]
            for trial in trials_of(study, arm):
                scores = series.scores(trial)
                values = [f"{words(name)} {short(value)}" for name, value in trial.values.items()]
                rows.append(
                    (
                        *(plan.label(condition), arm.name, ", ".join(values)),
                        spread_of(scale, scores),
                        str(int(np.isnan(scores).sum())),
                        _share(chosen.count(trial.values), len(chosen)),
                    )
                )
    head = ("condition", "arm", "values", f"{scale.label} on validation", "diverged", "chosen for")
    return Table(head, rows, words=3)


def _extent(values: Sequence[float]) -> str:
    """Format the value of all networks, or the lowest and the highest of theirs."""
    low, high = short(min(values)), short(max(values))
    return low if low == high else f"{low} to {high}"


def _share(count: int, among: int) -> str:
    """Format how many networks of an arm were trained with the values of a trial."""
    if count == among:
        return "all seeds"
    return number_of(count, "seed") if count else NONE


def compute(results: Results) -> Table:
    """Tabulate what the study cost, with the total in the last row."""

    def row(arm: ArmResult) -> tuple[str, ...]:
        speed = arm.images_per_second
        return (
            *(
                f"{arm.images:,}",
                fixed(arm.seconds, 1),
                NONE if speed is None else f"{speed:,.0f}",
            ),
            *(_extent(arm.learning_rates), f"{arm.parameters:,}", str(arm.devices)),
        )

    table = _per_cell(
        results, ("images", "seconds", "images/s", "learning rate", "parameters", "devices"), row
    )
    arms = [arm for row in results.arms for arm in row]
    images = sum(arm.images for arm in arms)
    seconds = sum(arm.seconds for arm in arms)
    speed = f"{images / seconds:,.0f}" if seconds else NONE
    total = ("", "total", f"{images:,}", fixed(seconds, 1), speed, "", "", "")
    return Table(table.head, [*table.rows, total], table.words)


def csv_runs(results: Results) -> tuple[list[str], list[list[object]]]:
    """Return the header and rows of results.csv: a row for each condition, arm and seed. The
    metrics on a further test set follow as METRIC@SET.
    """
    measured = list(plan.metrics(results.study))
    further = plan.further_test_sets(results.study)
    names = list(dict.fromkeys(name for condition in results.conditions for name in condition))
    rows = [
        [*_fields(names, condition), arm.name, run.seed, learning_rate(cell, run), run.diverged]
        + [_metric(run, metric) for metric in measured]
        + [len(run.history)]
        + [_metric(run, metric, test_set) for test_set in further for metric in measured]
        for condition, arms in zip(results.conditions, results.arms, strict=True)
        for arm in arms
        for cell in arm.cells
        for run in cell.runs
    ]
    on_further = [f"{metric}@{test_set}" for test_set in further for metric in measured]
    fields = [*BEFORE, *measured, *AFTER, *on_further]
    return [*_columns(names, fields), *fields], rows


def _metric(run: SeedRun, name: str, test_set: str | None = None) -> float | None:
    test = run.tested(test_set)
    return None if test is None else float(test[name])


def csv_verdicts(
    results: Results, verdicts: Sequence[Verdict]
) -> tuple[list[str], list[list[object]]]:
    """Return the header and rows of verdicts.csv: all numbers of the table of verdicts, in the
    metric's own unit.
    """
    study = results.study
    names = list(dict.fromkeys(name for condition in results.conditions for name in condition))
    asked = (plan.baseline(study), study.metric, plan.margin(study))
    head = [
        *("arm", "baseline", "metric", "margin", "baseline_mean", "arm_mean"),
        *NUMBERS,
        *("diverged", "collapsed", "highest_failure_rate", "comparisons", "verdict"),
    ]
    rows = []
    for verdict, means in zip(verdicts, _means(results, study.metric), strict=True):
        lost = verdict.failures
        rows.append(
            [
                *_fields(names, verdict.condition),
                verdict.arm,
                *asked,
                *means,
                *[getattr(verdict.comparison, name) for name in NUMBERS],
                *(lost.diverged, lost.collapsed, lost.highest_rate, results.family.comparisons),
                verdict.words,
            ]
        )
    return [*_columns(names, head), *head], rows


def _columns(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Name the conditions' columns; one that the other columns have too (a varied learning rate)
    gets a name of its own.
    """
    return [f"condition_{name}" if name in taken else name for name in names]


def _fields(names: Sequence[str], condition: plan.Condition) -> list[object]:
    return [condition.get(name) for name in names]
