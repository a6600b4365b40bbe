"""The report's order: sections of blocks, which html/page.py writes as HTML and markdown.py as
Markdown.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence

from cnnlab.html.blocks import (
    Block,
    Code,
    Legend,
    Panel,
    Panels,
    Section,
    Table,
    Tabled,
    Terms,
    Text,
)
from cnnlab.plots import MATRIX_CLASSES
from cnnlab.study import pairs, plan
from cnnlab.study.report import claims, coverage, figures, series, tables
from cnnlab.study.report.numbers import scales
from cnnlab.study.results import ArmResult, Results, Verdict

FEW = 2  # panels that are shown from the start where more are folded


def sections(results: Results, verdicts: Sequence[Verdict]) -> list[Section]:
    """Build all of the report below its title, the verdicts first.

    Args:
      results: of the study.
      verdicts: its verdicts.
    """
    parts = [
        _verdicts(results, verdicts),
        _evidence(results, verdicts),
        _seeds(results, verdicts),
        _pairing(results),
        _coverage(results),
        _all_pairs(results),
        _condition_means(results),
        _courses(results),
        _within_margin(results),
        _averages(results),
        _test_sets(results),
        _spread(results),
        _curves(results),
        _gradients(results),
        _calibration(results),
        _confusion(results),
        *[_along(results, name) for name in ("label_noise", "long_tail", "fraction")],
        _tuning(results),
        _compute(results),
        _reproduction(results),
    ]
    return [part for part in parts if part.blocks]


def _tabled(results: Results, table: Table, folded: str = "") -> Tabled:
    """Wrap a table in a block, without its first column if the only condition is the empty one."""
    if len(results.conditions) == 1 and not results.conditions[0]:
        table = Table(table.head[1:], [row[1:] for row in table.rows], table.words - 1)
    return Tabled(table, folded)


def _verdicts(results: Results, verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "Verdicts",
        [
            Text(claims.summary(results, verdicts)),
            Text(claims.planned(results)),
            *[Text(line, alarm=True) for line in claims.warnings(results, verdicts)],
            *[Text(line) for line in claims.tuned(results)],
            _tabled(results, tables.verdicts(results, verdicts)),
            Text(claims.columns(results), dim=True),
            _tabled(results, tables.details(results, verdicts), "More numbers of each comparison"),
            Text(claims.further_columns(results), dim=True),
            Terms(claims.meanings(results)),
            Text(
                "The other metrics: to look at; only the metric named beforehand has verdicts. "
                "Each interval holds at every look, for itself alone."
            ),
            _tabled(results, tables.others(results)),
        ],
    )


def _evidence(results: Results, verdicts: Sequence[Verdict]) -> Section:
    if not any(verdict.comparison.evidence for verdict in verdicts):
        return Section("Evidence", [])
    places = range(len(results.conditions))
    limit = results.family.comparisons / results.study.alpha
    return Section(
        "Evidence along the seeds",
        [
            Text(
                "How much the seeds so far speak against “symmetric about zero”: the capital of a "
                "player who bets on the signs of the differences, in a game that is fair if they "
                "are symmetric. Above the dashed line a comparison is decided on its own, at "
                f"{limit:,.0f}; as others of the family are decided less is enough. A ring marks "
                "the seed of decision; for an equivalent pair that rests on the evidence against "
                "both margins, which is not drawn."
            ),
            Legend(results.arm_names),
            Panels(lambda: [figures.evidence(results, verdicts, i) for i in places]),
        ],
    )


def _seeds(results: Results, verdicts: Sequence[Verdict]) -> Section:
    places = range(len(results.conditions))
    return Section(
        "Every seed",
        [
            Text(
                "Each point is a seed on the test set; on the left the bar is the mean ± sd over "
                "seeds. On the right the differences from the baseline at the same seed, with the "
                "interval of the table of verdicts and a line at their median; the grey band is "
                "the margin of equivalence."
            ),
            Panels(
                lambda: [p for i in places for p in figures.seeds(results, verdicts, i)],
                pairs=True,
            ),
            _tabled(results, tables.seeds(results), "The same as a table"),
        ],
    )


def _pairing(results: Results) -> Section:
    return Section(
        "What was paired",
        [
            Text(
                "What an arm and the baseline have in common at the same seed cancels out of their "
                "difference, which is why few seeds suffice. Draws depend on the seed alone. The "
                "initial weights of the first seed were compared as they were."
            ),
            _tabled(results, tables.paired_draws(results)),
        ],
    )


def _coverage(results: Results) -> Section:
    table = coverage.crossed(results)
    if not table.rows:
        return Section("What the verdicts cover", [])
    return Section(
        "What the verdicts cover",
        [*[Text(line) for line in claims.covered(results)], _tabled(results, table)],
    )


def _all_pairs(results: Results) -> Section:
    if not results.study.all_pairs:
        return Section("All pairs and ranks", [])
    verdicts = pairs.decide(results)
    return Section(
        "All pairs and ranks",
        [
            *[Text(line) for line in claims.all_pairs(results, pairs.comparisons(results))],
            *[Text(line) for line in claims.unbeaten(results, verdicts)],
            _tabled(results, coverage.ranks(results, verdicts)),
            Text(claims.ranks(), dim=True),
            _tabled(results, coverage.all_pairs(results, verdicts), "The pairs as a table"),
        ],
    )


def _condition_means(results: Results) -> Section:
    table = coverage.condition_means(results)
    if not table.rows:
        return Section("Means over conditions", [])
    return Section("Means over conditions", [Text(claims.condition_means(results)), Tabled(table)])


def _courses(results: Results) -> Section:
    table = coverage.courses(results)
    if not table.rows:
        return Section("Differences along the epochs", [])
    courses = series.courses(results)
    followed = sorted({place for (place, _), course in courses.items() if course is not None})
    return Section(
        "Differences along the epochs",
        [
            Text(claims.courses(results)),
            _tabled(results, table),
            Legend(results.arm_names),
            Panels(
                lambda: [figures.courses(results, place) for place in followed],
                "Drawn over the epochs",
                unfolded=len(followed) <= FEW,
            ),
        ],
    )


def _within_margin(results: Results) -> Section:
    return Section(
        "Within the margin, by Bayes’ rule",
        [
            Text(claims.within_margin(results)),
            _tabled(results, coverage.within_margin(results), "The probabilities as a table"),
        ],
    )


def _averages(results: Results) -> Section:
    table = tables.averages(results)
    if not table.rows:
        return Section("Averaged weights", [])
    return Section(
        "Averaged weights",
        [
            Text(
                "Where weights are averaged, all else in this report is of the averages. Here they "
                "are next to the last weights of the same runs: to look at; a verdict needs an arm "
                "of each, as --arms average=none average=ema,decay=0.99."
            ),
            _tabled(results, table),
        ],
    )


def _test_sets(results: Results) -> Section:
    blocks: list[Block] = []
    for name in plan.further_test_sets(results.study):
        blocks += [Text(name), _tabled(results, tables.test_set(results, name))]
    if blocks:
        before = Text(
            "The same networks on other test sets: to look at; the verdicts are about the data "
            "set’s own. The differences are from the baseline at the same seed."
        )
        blocks.insert(0, before)
    return Section("Other test sets", blocks)


def _spread(results: Results) -> Section:
    return Section(
        "Spread of accuracy over seeds",
        [
            Text(
                "The sd on the test set is what a rerun with other seeds would show here; the sd "
                "on the distribution is what is left of it on test sets without end, so the part "
                "in which networks truly differ; 0 where its estimate is negative (Jordan, 2023, "
                "arXiv 2304.01910)."
            ),
            _tabled(results, tables.spreads(results)),
        ],
    )


def _panels_per_condition(results: Results, draw: Callable[[int], list[Panel]]) -> list[Block]:
    """Build a row of panels per condition; several rows fold, and the first is open."""
    if len(results.conditions) == 1:
        return [Panels(functools.partial(draw, 0))]
    labels = map(plan.label, results.conditions)
    return [
        Panels(functools.partial(draw, i), label, unfolded=i == 0) for i, label in enumerate(labels)
    ]


def _curves(results: Results) -> Section:
    columns = [name for name in ("validation_accuracy", "train_accuracy") if _has(results, name)]
    if not columns:
        return Section("Learning curves", [])
    return Section(
        "Learning curves",
        [
            Text(
                "Mean ± sd over the seeds that were still finite. Each loss’s own value is in "
                "units of its own, so accuracy is shown; that of training is measured on augmented "
                "images while the weights change"
                + (
                    ", and against wrong labels where there is label noise."
                    if _noisy(results)
                    else "."
                )
            ),
            Legend(results.arm_names),
            *[Panels(functools.partial(_curve_panels, results, name)) for name in columns],
            _tabled(results, tables.last_epoch(results, columns), "The last epoch as a table"),
        ],
    )


def _curve_panels(results: Results, name: str) -> list[Panel]:
    return [figures.curves(results, place, name) for place in range(len(results.conditions))]


def _noisy(results: Results) -> bool:
    return any(condition.get("label_noise") for condition in results.conditions)


def _has(results: Results, name: str) -> bool:
    return any(name in row for arm in _arms(results) for run in arm.runs for row in run.history)


def _arms(results: Results) -> list[ArmResult]:
    return [arm for row in results.arms for arm in row]


def _gradients(results: Results) -> Section:
    steps = max((series.gradient_norms(arm).shape[1] for arm in _arms(results)), default=0)
    if not steps:
        return Section("Gradient norms", [])
    places = range(len(results.conditions))
    return Section(
        "Gradient norms early in training",
        [
            Text(
                f"Global norm of the gradient at the first {steps} steps: geometric mean over "
                "seeds, and the band of one sd of its logarithm. Its size depends on the scale of "
                "the loss, which Adam takes out of the step and SGD does not."
            ),
            Legend(results.arm_names),
            Panels(lambda: [figures.gradient_norms(results, i) for i in places]),
        ],
    )


def _calibration(results: Results) -> Section:
    arms = range(len(results.arm_names))
    return Section(
        "Calibration",
        [
            Text(
                "Accuracy against confidence on the test set in bins of equal width, pooled over "
                "seeds; on the dotted line confidence is right, below it too high. Bars: share of "
                "the images in the bin. ECE: mean ± sd over seeds."
            ),
            *_panels_per_condition(
                results, lambda i: [figures.reliability(results, i, j) for j in arms]
            ),
            _tabled(results, tables.calibration(results), "ECE as a table"),
        ],
    )


def _confusion(results: Results) -> Section:
    arms = range(len(results.arm_names))
    bars = any(len(arm.class_names) > MATRIX_CLASSES for arm in _arms(results))
    return Section(
        "Largest confusions" if bars else "Confusion matrices",
        [
            Text(
                "The mistakes that most images of the test set suffer, summed over seeds: true "
                "class → predicted class, as a share of the true class."
                if bars
                else "Shares of each true class (a row) on the test set in percent, summed over "
                "seeds; shares under 0.5 % have no number. The shade grows with the share’s "
                "square root, so that mistakes can be seen."
            ),
            *_panels_per_condition(
                results, lambda i: [figures.confusion(results, i, j) for j in arms]
            ),
        ],
    )


def _along(results: Results, name: str) -> Section:
    groups = series.along(results, name)
    words = name.replace("_", " ")
    if not groups:
        return Section(words, [])
    metric = scales(results.study)[results.study.metric].name
    return Section(
        f"{metric[0].upper()}{metric[1:]} against {words}",
        [
            Text("Mean ± sd over seeds; the numbers are in the tables above."),
            Legend(results.arm_names),
            Panels(
                lambda: [figures.along(results, name, others, places) for others, places in groups]
            ),
        ],
    )


def _tuning(results: Results) -> Section:
    chosen = [name for arm in _arms(results) for name in arm.runs[0].chosen]
    if not chosen:
        return Section("Tuning", [])
    places = range(len(results.conditions))
    names = dict.fromkeys(chosen)
    return Section(
        "Tuning",
        [
            Text(
                "Every value that was tried, with its mean score on the validation split at the "
                "end of training; a ring marks what was chosen. The score of the chosen values is "
                f"optimistic, as they were chosen among {results.study.budget}: compare arms on "
                "the test set."
            ),
            Text(claims.price_of_tuning(results)),
            Legend(results.arm_names),
            Panels(lambda: [figures.tuning(results, i, name) for i in places for name in names]),
            _tabled(results, tables.tuning(results)),
            _tabled(results, tables.trials(results), "All trials"),
        ],
    )


def _compute(results: Results) -> Section:
    return Section(
        "Compute",
        [
            *[Text(line, alarm=True) for line in claims.machines(results)],
            Text(
                "Images seen in training and seconds for it, over all seeds; tuning and tests come "
                "on top."
            ),
            _tabled(results, tables.compute(results)),
        ],
    )


def _reproduction(results: Results) -> Section:
    versions = [cell.versions for cell in results.cells]
    distinct = [version for i, version in enumerate(versions) if version not in versions[:i]]
    head = "Versions" if len(distinct) == 1 else "Versions (arms differ)"
    return Section(
        "To repeat it",
        [
            Code(results.command),
            *[Code(_json(version), head) for version in distinct],
            Code(_json(results.study.to_json()), "Configuration"),
        ],
    )


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
