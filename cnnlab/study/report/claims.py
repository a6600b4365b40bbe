"""What the report says in sentences. Pure functions from results to text; HTML and Markdown print
the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from cnnlab.study import pairs, plan, sequential, statistics, turns
from cnnlab.study.ranges import parse_ranges
from cnnlab.study.records import CellResult
from cnnlab.study.report import series
from cnnlab.study.report.numbers import number_of, scales, short, words
from cnnlab.study.results import EXPLORATORY, ArmResult, Results, Verdict, failures
from cnnlab.study.turns import Course
from cnnlab.training.program import LEARNING_RATE

# Of the versions: they change the rounding, and are reported with the compute.
HARDWARE = ("machine", "flags")
THINNED = ("fraction", "long_tail")  # conditions that use some of the images


# experiments/benchmarks/verdicts.py, the worst of its costs of a wrong choice
PRICE = "10 % (one hyperparameter) to 19 % (three)"


def listed(items: Sequence[str], comma: str = ", ") -> str:
    """Join words with commas and "and"; for arms, which have commas of their own, with
    semicolons.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return f"{comma.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)


def title(results: Results) -> str:
    """Return the title of the page."""
    of = "losses" if not results.study.arms else "arms"
    datasets = [condition.get("dataset") for condition in results.conditions]
    names = dict.fromkeys(str(name or results.study.training.dataset) for name in datasets)
    return f"{len(results.arm_names)} {of} on {listed(list(names))}"


def compared(results: Results) -> str:
    """Say in one sentence what was compared."""
    study = results.study
    conditions = results.conditions
    base = plan.baseline(study)
    rest = listed([arm for arm in results.arm_names if arm != base], "; ")
    first = f" from seed {study.first_seed} on" if study.first_seed else ""
    under = (
        f"under {number_of(len(conditions), 'condition')} "
        f"({'; '.join(map(plan.label, conditions))})"
    )
    once = f" under {plan.label(conditions[0])}" if conditions[0] else ""
    where = f" {under}" if len(conditions) > 1 else once
    return (
        f"{rest} against the baseline {base}{where}: {_seeds(results)} "
        f"each{first}{_in_common(results)}; by {_metric(study)} on the test set.{_split(study)}"
    )


def _in_common(results: Results) -> str:
    """Say which network all arms train, on what and for how long; nothing of what differs."""
    training = results.study.training
    changed = plan.changed_settings(results.study)
    model = "" if "model" in changed else training.model
    dataset = "" if "dataset" in changed else f"on {training.dataset}"
    what = " ".join(text for text in (model, dataset) if text)
    epochs = "" if "epochs" in changed else number_of(training.epochs, "epoch")
    return "".join(f", {text}" for text in (what, epochs) if text)


def _split(study: plan.Study) -> str:
    """Say which images are drawn by the seed."""
    training = study.training
    by_seed = []
    if any(name in condition for condition in plan.conditions(study) for name in THINNED):
        by_seed.append("images")
    if not training.validation or any(text.startswith("split_seed") for text in study.vary):
        fixed = ""
    elif training.split_seed is None:
        by_seed.append("validation split")
        fixed = ""
    else:
        fixed = (
            f" All seeds have the same validation split (--split-seed {training.split_seed}): "
            "verdicts are about that one."
        )
    if not by_seed:
        return fixed
    return f" Each seed draws its own {listed(by_seed)}, so that verdicts cover others.{fixed}"


def _seeds(results: Results) -> str:
    """Say how many seeds the arms have."""
    numbers = sorted({len(arm.runs) for row in results.arms for arm in row})
    most = number_of(numbers[-1], "paired seed")
    return most if len(numbers) == 1 else f"{numbers[0]} to {most}"


def _metric(study: plan.Study) -> str:
    direction = "larger" if plan.metric(study).larger_is_better else "smaller"
    return f"{scales(study)[study.metric].name} ({direction} is better)"


def summary(results: Results, verdicts: Sequence[Verdict]) -> str:
    """Say how many verdicts there are of each kind."""
    counts = Counter(verdict.kind for verdict in verdicts)
    order = (
        statistics.BETTER,
        statistics.WORSE,
        statistics.EQUIVALENT,
        statistics.UNDECIDED,
        EXPLORATORY,
    )
    kinds = listed([f"{counts[word]} {word}" for word in order if counts[word]])
    return f"{number_of(len(verdicts), 'comparison')} with {plan.baseline(results.study)}: {kinds}."


def warnings(results: Results, verdicts: Sequence[Verdict]) -> list[str]:
    """List what weakens every claim below: deviations from the plan, too few seeds, rates not tuned
    or at the edge, diverged runs, mixed cells, verdicts against the mean.
    """
    return [
        *_unplanned(results),
        *_grown(results),
        *_too_few(results),
        *_untuned(results),
        *_edges(results),
        *_diverged(results),
        *_collapsed(results),
        *_mixed(results),
        *_against_the_mean(results, verdicts),
    ]


def _unplanned(results: Results) -> list[str]:
    if not results.family.deviations:
        return []
    return [
        "This study deviates from its plan, so it has no verdicts: "
        f"{listed(results.family.deviations, '; ')}. Its numbers are for exploration only."
    ]


def _grown(results: Results) -> list[str]:
    planned = results.family.manifest.comparisons
    number = results.family.comparisons
    if number <= planned:
        return []
    return [
        f"The family has grown from {number_of(planned, 'planned comparison')} to {number}, "
        "counting all that were ever asked for in this folder. All levels were computed again, for "
        f"{number}; --comparisons plans them beforehand."
    ]


def _too_few(results: Results) -> list[str]:
    study = results.study
    needed = sequential.seeds_needed(results.family.comparisons, study.alpha)
    most = max(len(arm.runs) for row in results.arms for arm in row)
    if most >= needed:
        return []
    return [
        f"No verdict was possible: {number_of(results.family.comparisons, 'comparison')} at "
        f"{number_of(most, 'seed')} cannot be decided, whatever the difference; {needed} "
        "seeds are needed. The same command with more --seeds trains only what is missing."
    ]


def _untuned(results: Results) -> list[str]:
    if LEARNING_RATE in {tuned.name for tuned in parse_ranges(results.study.tune)}:
        return []
    used = sorted({rate for _, arm in _named(results) for rate in arm.learning_rates})
    return [
        f"The learning rate was not tuned per arm ({listed(list(map(short, used)))}), and a rate "
        "that suits the baseline biases every comparison. --tune learning_rate=LOW..HIGH chooses "
        "one for each arm."
    ]


def _edges(results: Results) -> list[str]:
    lines = []
    for tuned in parse_ranges(results.study.tune):
        at_edge = []
        for j, arm in enumerate(results.arm_names):
            at_ends = [series.at_edge(row[j], tuned.name) for row in results.arms]
            if count := sum(map(bool, at_ends)):
                values = sorted({value for ends in at_ends for value in ends})
                among = f", under {count} of {len(at_ends)} conditions" if len(at_ends) > 1 else ""
                at_edge.append(f"{arm} ({listed(list(map(short, values)))}{among})")
        if at_edge:
            lines.append(
                f"The chosen {words(tuned.name)} is the lowest or the highest of those tried, at "
                f"the edge of its range, for {listed(at_edge, '; ')}: a better one may lie beyond, "
                "so these arms may do better than is shown; widen --tune, or raise --budget."
            )
    return lines


def tuned(results: Results) -> list[str]:
    """Say how hyperparameters were tuned; nothing if they were not."""
    study = results.study
    ranges = parse_ranges(study.tune)
    if not ranges:
        return []
    names = [f"{words(r.name)} ({short(r.low)} to {short(r.high)})" for r in ranges]
    with_seeds = "anew for each seed, with that seed"
    if not study.tune_per_seed:
        number = len(plan.tuning_seeds(study))
        with_seeds = f"with {number_of(number, 'seed')} that no comparison uses"
    return [
        f"Tuned for each arm under each condition: {listed(names)}; chosen "
        f"among {number_of(study.budget, 'trial')} by {scales(study)[study.metric].name} on the "
        f"validation split, {with_seeds}. An arm without a hyperparameter is trained as it is."
    ]


def price_of_tuning(results: Results) -> str:
    """Say what tuning does to the error rate."""
    study = results.study
    if study.tune_per_seed:
        return (
            "Each seed has its own choice, so that the luck of a choice is among the differences "
            "between seeds, and the verdicts cover it."
        )
    number = number_of(len(plan.tuning_seeds(study)), "seed")
    how = "With one tuning seed some 50 % did. What is chosen is the trial with the best score."
    if len(plan.tuning_seeds(study)) > 1:
        how = (
            "What is chosen is the trial at the centre of those that could be the best, given how "
            "their scores vary between seeds."
        )
    return (
        f"All seeds of an arm share a choice that was made with {number}: its luck is in every "
        "difference, and no verdict covers it. Of simulated studies of four equal arms with four "
        f"tuning seeds, {PRICE} called some arm better or worse; with --tune-per-seed 5 %. {how}"
    )


def _named(results: Results) -> Iterator[tuple[str, ArmResult]]:
    """Yield each arm under each condition with its name."""
    for condition, row in zip(results.conditions, results.arms, strict=True):
        for arm in row:
            yield f"{arm.name}, {plan.label(condition)}", arm


def _diverged(results: Results) -> list[str]:
    lines = []
    for name, arm in _named(results):
        if lost := series.diverged(arm):
            seeds = listed([f"{seed} (step {step:,})" for seed, step in lost])
            runs = number_of(len(arm.runs), "run")
            lines.append(f"{len(lost)} of {runs} of {name}: seed {seeds}")
    if not lines:
        return []
    return [
        f"Runs diverged: {'; '.join(lines)}. Such a seed is worse than any other, and like every "
        "seed it counts for two typical differences at most; means of the others would flatter the "
        "arm and are not shown."
    ]


def _collapsed(results: Results) -> list[str]:
    lines = [
        f"{count} of {number_of(len(arm.runs), 'run')} of {name}"
        for name, arm in _named(results)
        if (count := failures(arm, results.study.metric).collapsed)
    ]
    if not lines:
        return []
    return [
        f"Runs collapsed, to less than half the accuracy of the median run: {'; '.join(lines)}. "
        "No seed counts for more than two typical differences, so that an arm which is usually "
        "better and sometimes collapses can be called better."
    ]


def _against_the_mean(results: Results, verdicts: Sequence[Verdict]) -> list[str]:
    larger = plan.metric(results.study).larger_is_better
    lines = []
    for verdict in verdicts:
        mean = verdict.comparison.mean
        claimed = {statistics.BETTER: 1, statistics.WORSE: -1}.get(verdict.kind, 0)
        against = claimed * mean * (1 if larger else -1) < 0
        if against or (verdict.kind == statistics.BETTER and verdict.failures.diverged):
            lines.append(f"{verdict.arm}, {plan.label(verdict.condition)} ({verdict.kind})")
    if not lines:
        return []
    return [
        f"Verdict and mean difference disagree: {listed(lines, '; ')}. It is usually one way, and "
        "sometimes much more the other: look at every seed."
    ]


def _mixed(results: Results) -> list[str]:
    cells = results.cells
    lines = []
    by_size: dict[object, set[str]] = {}  # scaled otherwise, the same images have another digest
    for cell in cells:
        by_size.setdefault(cell.condition.get("image_size"), set()).add(cell.digest)
    if any(len(digests) > 1 for digests in by_size.values()):
        lines.append(
            "Not all cells were trained on the same data: their digests differ, and so may the "
            "results for that reason alone. Delete the older cells and train them again."
        )
    for name, arm in _named(results):
        chosen = [run.chosen for run in arm.runs]
        if not results.study.tune_per_seed and any(values != chosen[0] for values in chosen):
            lines.append(f"Blocks of {name} were tuned apart, and differ in what was chosen.")
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
    differing = _differing(results.cells, hardware=True)
    return (
        [f"Cells were trained on different machines, which can differ in rounding: {differing}."]
        if differing
        else []
    )


def planned(results: Results) -> str:
    """Say what was planned, and when."""
    manifest = results.family.manifest
    scale = scales(results.study).get(manifest.metric)
    name = scale.name if scale else manifest.metric
    margin = scale.with_unit(manifest.margin) if scale else f"{manifest.margin:g}"
    when = "before its first cell was trained"
    if manifest.cells:
        when = f"when {number_of(manifest.cells, 'cell')} of it had been trained for another study"
    return (
        f"Planned on {manifest.written.replace('T', ' at ').replace('+00:00', ' UTC')}, {when}: "
        f"{name} against {manifest.baseline}, margin ±{margin}, "
        f"{number_of(manifest.comparisons, 'comparison')}. Of studies without any difference, at "
        f"most {100 * manifest.alpha:g} % end with a “better” or “worse”, however often one looks "
        "and whenever one stops."
    )


def _margin(results: Results) -> str:
    study = results.study
    return scales(study)[study.metric].with_unit(plan.margin(study))


def meanings(results: Results) -> list[tuple[str, str]]:
    """Explain each verdict: (word, explanation)."""
    margin = _margin(results)
    return [
        (
            f"{statistics.BETTER}, {statistics.WORSE}",
            "the differences are not symmetric about zero: the interval lies on one side of it. "
            f"“By more than the margin”: all of it lies beyond ±{margin}. “Within the margin”: all "
            f"of it lies within, so there is a difference, but a smaller one than ±{margin}.",
        ),
        (
            statistics.EQUIVALENT,
            f"the interval lies within ±{margin}, and no difference from zero was shown.",
        ),
        (
            statistics.UNDECIDED,
            "the interval allows both. This is never “no difference”: it takes more seeds. "
            "“Expect 24”: so many, if the differences continue as they are.",
        ),
        (
            EXPLORATORY,
            "the study deviates from its plan: its numbers are for exploration only.",
        ),
    ]


def columns(results: Results) -> str:
    """Explain how to read the table of verdicts."""
    together = number_of(results.family.comparisons, "comparison")
    return (
        "Differences are arm minus baseline, of the same seed. The interval holds at every look, "
        f"for all {together} together. p: of differences that are symmetric about zero, at every "
        "look, after Holm’s correction. Open at 16: not decided after so many seeds. Failed: seeds "
        "that diverged or collapsed (less than half the accuracy of the arm’s median seed), and "
        "the highest rate of them that so many seeds allow, at 95 %."
    )


def further_columns(results: Results) -> str:
    """Explain how to read the table of what else is known."""
    name = scales(results.study)[results.study.metric].name
    tail = (
        ""
        if plan.metric(results.study).larger_is_better
        else "; as smaller is better, below 0.5 favours the arm"
    )
    return (
        "p not equivalent: of differences that are symmetric about a centre beyond the margin. "
        "Sign flips: p of an exact test for one look and one comparison, a second opinion. d_z: "
        f"mean over sd of the differences. P(A > B): share of seeds where the arm’s {name} (A) is "
        f"above the baseline’s (B), ties half{tail}."
    )


def covered(results: Results) -> list[str]:
    """Say what the verdicts cover, and what the interval over seeds and images does."""
    lines = [
        "The verdicts are about new seeds on this test set. Other test images of the same kind "
        "would move every seed’s difference together, which more seeds do not show. The interval "
        "below is of the difference in accuracy, and covers both: new seeds, and new test images. "
        f"It is Student’s at {_confidence(results)}, for each comparison by itself and for a "
        "number of seeds that was fixed beforehand: to look at, it has no verdict. It may be "
        "narrower than the interval of the verdict, which holds at every look, and for all "
        "comparisons together. Seeds that diverged are left out of it and counted: without them an "
        "arm may look better than it is.",
        "The last three columns split the variance of the mean difference. The part of the seeds "
        "shrinks only with more seeds, the part of the images only with more test images. The part "
        "of both is what a seed does on single images; it shrinks with either (Searle, Casella & "
        "McCulloch, 1992; Owen, 2007).",
    ]
    if results.study.until is not None:
        lines.append(
            "Here seeds were added until comparisons were decided (--until decided), so that this "
            "interval covers less than it says."
        )
    return lines


def _confidence(results: Results) -> str:
    return f"{100 * (1 - results.study.alpha):g} %"


def all_pairs(results: Results, comparisons: int) -> list[str]:
    """Say what the comparisons of all pairs are.

    Args:
      results: of the study.
      comparisons: that share the error rate of the pairs.
    """
    study = results.study
    lines = [
        "Every pair of arms, compared with the same metric, margin and procedure. This is a second "
        f"family, of {number_of(comparisons, 'comparison')}, with an error rate of its own: of "
        f"studies without any difference, at most {100 * study.alpha:g} % have a “better” or "
        "“worse” in this section, whatever the first family has. The verdicts at the top of this "
        f"report are about the baseline alone, {plan.baseline(study)}. They are fewer, so that a "
        "pair may be decided there and still be open here."
    ]
    needed = sequential.seeds_needed(comparisons, study.alpha)
    if max(len(arm.runs) for row in results.arms for arm in row) < needed:
        lines.append(
            f"No pair can be decided yet, whatever the difference: so many need {needed} seeds."
        )
    return lines


def ranks() -> str:
    """Explain the table of ranks."""
    return (
        "Possible ranks: those that the decided pairs leave to an arm, from 1 + the number of arms "
        "decided to be better to the number of arms without those decided to be worse. They hold "
        "together, with the error rate of the pairs. Mean rank: over the seeds that all arms have; "
        "equal arms share a rank, and what diverged comes last. It is a description, without an "
        "error rate."
    )


def unbeaten(results: Results, verdicts: Sequence[Verdict]) -> list[str]:
    """Say under each condition which arms no other beats.

    Args:
      results: of the study.
      verdicts: of all pairs.
    """
    if results.family.deviations:
        return ["The study deviates from its plan, so no pair is decided and all ranks are open."]
    lines = []
    for place, condition in enumerate(results.conditions):
        where = f" under {plan.label(condition)}" if condition else ""
        ranked = pairs.ranks(results, verdicts, place)
        names = [rank.arm for rank in ranked if rank.is_unbeaten]
        which = "all of them" if len(names) == len(ranked) else listed(names, "; ")
        lines.append(f"Arms that no other was shown to beat{where}: {which}.")
    return lines


def condition_means(results: Results) -> str:
    """Explain the means over conditions."""
    name = scales(results.study)[results.study.metric].name
    return (
        "Each seed’s difference from the baseline, averaged over conditions with equal weights; "
        "only seeds that all of them have. To look at: it has no verdict, and each interval holds "
        "at every look, for itself alone. An average over conditions means something only if "
        f"{name} has the same unit under all of them, and differences of one size matter as much "
        "under each."
    )


def courses(results: Results) -> str:
    """Explain the differences along the epochs."""
    band = ""
    if results.study.metric == "accuracy":
        band = " The grey band is the margin of equivalence."
    return (
        "Whether the comparison depends on when training stops: validation accuracy minus the "
        "baseline’s of the same seed, after each epoch, over the seeds that stayed finite. It is "
        "measured on the validation split, and is not the test metric that the verdicts are "
        "about. The intervals are pointwise: Student’s at "
        f"{_confidence(results)} for each epoch by itself, so that among many epochs some lie off "
        f"zero by chance.{band}"
    )


def course(course: Course) -> str:
    """Say in one sentence what the difference does along the epochs (see `Course.kind`)."""
    side = "above the baseline" if course.mean[-1] > 0 else "below the baseline"
    since = f"epoch {course.epochs[course.epochs > course.last_turn][0]}"
    match course.kind:
        case turns.TURNED:
            return f"the sign turned after epoch {course.last_turn}: {side} since {since}"
        case turns.FADED:
            others = np.sign(course.mean) != np.sign(course.mean[-1])
            last_clear = course.epochs[course.is_clear & others][-1]
            return f"clear of zero until epoch {last_clear}, with another sign than at the end"
        case turns.KEPT:
            end = "clear" if course.is_clear[-1] else "not clear"
            return f"kept its sign from {since} on: {side}, {end} of zero at the end"
    return "never clear of zero"


def within_margin(results: Results) -> str:
    """Say what the probability of lying within the margin is, and is not."""
    return (
        f"The probability that the mean difference μ lies within ±{_margin(results)}, given the "
        "seeds of this study. This is not an error rate: it assumes that the differences are "
        "normal, and that before the study every μ and every order of magnitude of their spread "
        "was equally likely (a flat prior). Nothing bounds how often such a sentence is wrong in "
        "studies that stop when it looks good. The verdicts assume neither. A dash: a seed "
        "diverged, or there is only one."
    )
