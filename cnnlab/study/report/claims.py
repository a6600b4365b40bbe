"""What the report says in sentences. Pure functions from results to text; HTML and Markdown print
the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cnnlab.study import plan, statistics
from cnnlab.study.report import series
from cnnlab.study.report.numbers import number_of, scales, short
from cnnlab.study.report.tables import DIVERGED, verdict_word
from cnnlab.study.results import CellResult, Results, Verdict

# Of the versions: they change the rounding, and are reported with the compute.
HARDWARE = ("machine", "flags")


def listed(items: Sequence[str], comma: str = ", ") -> str:
    """Join words with commas and "and"; for losses, which have commas of their own, with
    semicolons.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return f"{comma.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)


def title(results: Results) -> str:
    """Return the title of the page."""
    return f"{len(results.study.losses)} losses on {results.study.training.dataset}"


def compared(results: Results) -> str:
    """Say in one sentence what was compared."""
    study = results.study
    conditions = results.conditions
    base = plan.baseline(study)
    rest = listed([loss for loss in study.losses if loss != base], "; ")
    first = f" from seed {study.first_seed} on" if study.first_seed else ""
    under = (
        f"under {number_of(len(conditions), 'condition')} "
        f"({'; '.join(map(plan.label, conditions))})"
    )
    once = f" under {plan.label(conditions[0])}" if conditions[0] else ""
    where = f" {under}" if len(conditions) > 1 else once
    epochs = (
        ""
        if any("epochs" in condition for condition in conditions)
        else f", {number_of(study.training.epochs, 'epoch')}"
    )
    return (
        f"{rest} against the baseline {base}{where}: {number_of(study.seeds, 'paired seed')} "
        f"each{first}, {study.training.model} on {study.training.dataset}{epochs}; the metric "
        f"named beforehand is "
        f"{_metric(study)} on the test set."
    )


def _metric(study: plan.Study) -> str:
    direction = "larger" if plan.metric(study).larger_is_better else "smaller"
    return f"{scales(study)[study.metric].name} ({direction} is better)"


def summary(results: Results, verdicts: Sequence[Verdict]) -> str:
    """Say how many verdicts there are of each kind."""
    counts = Counter(map(verdict_word, verdicts))
    order = (
        statistics.BETTER,
        statistics.WORSE,
        statistics.EQUIVALENT,
        statistics.UNDECIDED,
        statistics.UNDERPOWERED,
        DIVERGED,
    )
    kinds = listed([f"{counts[word]} {word}" for word in order if counts[word]])
    return f"{number_of(len(verdicts), 'comparison')} with {plan.baseline(results.study)}: {kinds}."


def warnings(results: Results) -> list[str]:
    """List what weakens every claim below: too few seeds, rates not tuned or at the edge, diverged
    runs, mixed cells.
    """
    return [
        *_too_few(results),
        *_untuned(results),
        *_edges(results),
        *_diverged(results),
        *_mixed(results),
    ]


def _too_few(results: Results) -> list[str]:
    study = results.study
    m = (len(study.losses) - 1) * len(results.conditions)
    needed = statistics.seeds_needed(m)
    if study.seeds >= needed:
        return []
    return [
        f"No verdict was possible: {number_of(m, 'comparison')} at "
        f"{number_of(study.seeds, 'seed')} cannot reach p = 0.05 after Holm’s correction, whatever "
        f"the difference; {needed} seeds are needed (--seeds {needed})."
    ]


def _untuned(results: Results) -> list[str]:
    if results.study.tune is not None:
        return []
    used = sorted({cell.learning_rate for row in results.cells for cell in row})
    return [
        "The learning rate was not tuned per loss: all losses used "
        f"{listed(list(map(short, used)))}, and a rate that suits the baseline biases every "
        "comparison. --tune lr=LOW..HIGH chooses one for each loss."
    ]


def _edges(results: Results) -> list[str]:
    at_edge = []
    for j, loss in enumerate(results.study.losses):
        cells = [row[j] for row in results.cells]
        rates = sorted({short(cell.learning_rate) for cell in cells if series.at_edge(cell)})
        count = sum(map(series.at_edge, cells))
        if count:
            among = f", under {count} of {len(cells)} conditions" if len(cells) > 1 else ""
            at_edge.append(f"{loss} ({listed(rates)}{among})")
    if not at_edge:
        return []
    return [
        f"The chosen learning rate lies at the edge of the range for {listed(at_edge, '; ')}: a "
        "better one may lie beyond it, so these losses may do better than is shown; widen --tune."
    ]


def tuned(results: Results) -> list[str]:
    """Say how the learning rates were tuned; nothing if they were not."""
    rates = plan.rates(results.study)
    if not rates:
        return []
    return [
        "The learning rate was tuned per loss: for each loss under each condition the best of "
        f"{results.study.budget} rates between {short(rates[0])} and {short(rates[-1])} on the "
        "validation split, on a seed that is not among those compared."
    ]


def _diverged(results: Results) -> list[str]:
    lines = []
    for condition, row in zip(results.conditions, results.cells, strict=True):
        for cell in row:
            if lost := series.diverged(cell):
                seeds = listed([f"{seed} (step {step:,})" for seed, step in lost])
                runs = number_of(len(cell.runs), "run")
                lines.append(
                    f"{len(lost)} of {runs} of {cell.loss}, {plan.label(condition)}: seed {seeds}"
                )
    if not lines:
        return []
    return [
        f"Runs diverged: {'; '.join(lines)}. Comparisons with them have no numbers, as leaving "
        f"such seeds out would flatter the loss; the verdict is “{DIVERGED}”."
    ]


def _mixed(results: Results) -> list[str]:
    cells = [cell for row in results.cells for cell in row]
    lines = []
    by_size: dict[object, set[str]] = {}  # scaled otherwise, the same images have another digest
    for cell in cells:
        by_size.setdefault(cell.condition.get("image_size"), set()).add(cell.digest)
    if any(len(digests) > 1 for digests in by_size.values()):
        lines.append(
            "Not all cells were trained on the same data: their digests differ, and so may the "
            "results for that reason alone. Delete the older cells and train them again."
        )
    if differing := _differing(cells, hardware=False):
        lines.append(f"Cells were trained with different versions: {differing}.")
    return lines


def _differing(cells: Sequence[CellResult], hardware: bool) -> str:
    names = sorted(
        {name for cell in cells for name in cell.versions if (name in HARDWARE) == hardware}
    )
    versions = {name: sorted({str(cell.versions.get(name)) for cell in cells}) for name in names}
    return "; ".join(
        f"{name} {listed(values)}" for name, values in versions.items() if len(values) > 1
    )


def machines(results: Results) -> list[str]:
    """Say which machines or flags differ between cells; nothing if none do."""
    differing = _differing([cell for row in results.cells for cell in row], hardware=True)
    return (
        [f"Cells were trained on different machines, which can differ in rounding: {differing}."]
        if differing
        else []
    )


def meanings(results: Results) -> list[tuple[str, str]]:
    """Explain each verdict: (word, explanation)."""
    study = results.study
    m = number_of((len(study.losses) - 1) * len(results.conditions), "comparison")
    margin = scales(study)[study.metric].with_unit(plan.margin(study))
    return [
        (
            f"{statistics.BETTER}, {statistics.WORSE}",
            "the mean difference is not zero: sign-flip test over the seeds, p ≤ 0.05 after "
            f"Holm’s correction over {m}. It may still be smaller than ±{margin}: look at the "
            "interval.",
        ),
        (
            statistics.EQUIVALENT,
            f"the mean difference lies within ±{margin}: two one-sided t-tests, p ≤ 0.05 after "
            "Holm’s correction.",
        ),
        (
            statistics.UNDECIDED,
            f"neither was shown, though with these seeds a difference of {margin} would have been "
            "found with power 0.8.",
        ),
        (
            statistics.UNDERPOWERED,
            f"neither was shown, and a difference of {margin} could have been missed. This is "
            "never “no difference”: it takes more seeds.",
        ),
        (DIVERGED, "a run of the loss or of the baseline left the finite numbers."),
    ]


def columns(results: Results) -> str:
    """Explain how to read the table of verdicts."""
    name = scales(results.study)[results.study.metric].name
    tail = (
        ""
        if plan.metric(results.study).larger_is_better
        else "; as smaller is better, below 0.5 favours the loss"
    )
    return (
        "Differences are loss minus baseline, of the same seed. d_z: mean over sd of the "
        f"differences. P(A > B): share of seeds where the loss’s {name} (A) is above the "
        f"baseline’s (B), ties half{tail}. Detectable: the smallest mean difference found with "
        "power 0.8 at these seeds. Intervals are of one comparison, without Holm’s correction; p "
        "not equivalent is what “equivalent” rests on."
    )
