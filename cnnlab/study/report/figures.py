"""The report's figures: small panels, each a function of the results that gives SVG. What is drawn
is in `series`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from cnnlab.html.blocks import Panel
from cnnlab.html.svg import INK, draw, look, plain_log
from cnnlab.metrics import largest_confusions
from cnnlab.plots import MATRIX_CLASSES, SERIES, clipped, confusion_bars
from cnnlab.study import plan, sequential
from cnnlab.study.report import series, tables
from cnnlab.study.report.numbers import ECE, Scale, number_of, scales, short, words
from cnnlab.study.results import ArmResult, Results, Verdict, curve, differences, trials_of, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

ROW = 40
STRIP = 280
LABELLED = 12  # classes up to which a confusion matrix has names and numbers
BARS = 12  # confusions that are drawn of more classes than a matrix is drawn of
BAR_NAME = 18  # characters of a name next to a bar


def evidence(results: Results, verdicts: Sequence[Verdict], place: int) -> Panel:
    """Draw the evidence against "symmetric about zero" along the seeds, a line for each arm."""
    rows = _rows(results, verdicts, place)
    limit = results.family.comparisons / results.study.alpha

    def paint(axis: Axes) -> None:
        axis.set_yscale("log")
        axis.axhline(limit, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.axhline(1, color=INK, linewidth=0.8)
        for j, verdict in rows.items():
            capital = np.maximum(verdict.comparison.evidence, 1e-3)
            x = np.arange(len(capital)) + sequential.FIRST
            axis.plot(x, capital, **look(j), linewidth=1.6, markersize=4.5)
            at = verdict.comparison.decided - sequential.FIRST
            if 0 <= at < len(capital):
                axis.plot(
                    [x[at]],
                    [capital[at]],
                    "o",
                    markersize=11,
                    markerfacecolor="none",
                    markeredgecolor=look(j)["color"],
                    markeredgewidth=1.6,
                )
        axis.grid(color=INK, alpha=0.15)
        ticks = cast("MaxNLocator", axis.xaxis.get_major_locator())
        ticks.set_params(integer=True, nbins=6)
        axis.set(xlabel="seeds", ylabel="evidence (log)")
        plain_log(axis.yaxis)

    caption = f"Evidence{under(results.conditions[place])}"
    return Panel(caption, draw(paint, f"{caption}, along the seeds"))


def _rows(results: Results, verdicts: Sequence[Verdict], place: int) -> dict[int, Verdict]:
    """Find the verdicts under the place-th condition, by the number of the arm."""
    condition, names = results.conditions[place], results.arm_names
    return {names.index(v.arm): v for v in verdicts if v.condition == condition}


@dataclass(frozen=True)
class Strips:
    """A metric of several arms, seed by seed.

    Attributes:
      names: of the arms.
      rows: the metric of each network, float64[seeds] for each arm; NaN where it diverged.
      gaps: its difference from the baseline of the same seed; empty for the baseline.
      intervals: (low, middle, high) of these, NaN where there are none.
      scale: how it is shown.
      larger_is_better: the direction.
      margin: of equivalence; 0: none is drawn.
      where: which condition, for captions.
    """

    names: Sequence[str]
    rows: Sequence[np.ndarray]
    gaps: Sequence[np.ndarray]
    intervals: Sequence[tuple[float, float, float]]
    scale: Scale
    larger_is_better: bool
    margin: float = 0.0
    where: str = ""


def seeds(results: Results, verdicts: Sequence[Verdict], place: int) -> list[Panel]:
    """Draw the study's metric for each seed, and its difference from the baseline of the same seed,
    under the place-th condition.
    """
    study = results.study
    arms = results.arms[place]
    all_gaps = differences(results, study.metric)
    rows = _rows(results, verdicts, place)
    nothing = (np.nan, np.nan, np.nan)
    intervals = [
        (c.low, c.median, c.high) if (c := rows[j].comparison if j in rows else None) else nothing
        for j in range(len(arms))
    ]
    return strips(
        Strips(
            results.arm_names,
            [values(arm, study.metric) for arm in arms],
            [all_gaps.get((place, j), np.array([])) for j in range(len(arms))],
            intervals,
            scales(study)[study.metric],
            plan.metric(study).larger_is_better,
            plan.margin(study),
            under(results.conditions[place]),
        )
    )


def strips(drawn: Strips) -> list[Panel]:
    """Draw a metric for each seed, and its differences from the baseline."""
    scale = drawn.scale
    direction = "larger" if drawn.larger_is_better else "smaller"
    rows = [scale.factor * row for row in drawn.rows]
    spans = [
        (series.mean(row) - series.sd(row), series.mean(row), series.mean(row) + series.sd(row))
        for row in rows
    ]

    def left(axis: Axes) -> None:
        _strips(axis, drawn.names, rows, spans)
        axis.set_xlabel(f"{scale.label}, {direction} is better")

    def right(axis: Axes) -> None:
        if drawn.margin:
            margin = scale.factor * drawn.margin
            axis.axvspan(-margin, margin, color=INK, alpha=0.13, linewidth=0)
        axis.axvline(0, color=INK, linewidth=0.8)
        names = [
            name if len(gap) else f"{name} (baseline)"
            for name, gap in zip(drawn.names, drawn.gaps, strict=True)
        ]
        gaps = [scale.factor * gap for gap in drawn.gaps]
        ends = [tuple(scale.factor * end for end in interval) for interval in drawn.intervals]
        _strips(axis, names, gaps, ends)
        axis.set_xlabel(scale.difference_label)

    shape = {
        "width": STRIP,
        "height": ROW * len(rows) + 48,
        "left": 8,
        "right": 12,
        "top": 6,
        "bottom": 40,
    }
    return [
        Panel(
            f"{_capital(scale.name)}{drawn.where}",
            draw(left, f"{scale.name} of each seed{drawn.where}", **shape),
        ),
        Panel(
            f"Paired differences{drawn.where}",
            draw(right, f"Differences from the baseline{drawn.where}", **shape),
        ),
    ]


def _strips(
    axis: Axes,
    names: Sequence[str],
    rows: Sequence[np.ndarray],
    bars: Sequence[tuple[float, ...]],
) -> None:
    """Draw a row for each arm, its name above its points; (low, middle, high) as a bar."""
    for j, (name, row) in enumerate(zip(names, rows, strict=True)):
        style = look(j)
        finite = np.isfinite(row)
        offsets = 0.09 * ((np.arange(len(row)) * 2) % 5 - 2) / 2  # apart, in the same way each time
        axis.plot(
            row[finite],
            (j + 0.15 + offsets)[finite],
            style["marker"],
            color=style["color"],
            alpha=0.7,
            markersize=6,
            markeredgewidth=0,
        )
        low, middle, high = bars[j]
        if np.isfinite(low) and np.isfinite(high):
            axis.plot([low, high], [j + 0.15] * 2, color=style["color"], linewidth=2)
        if np.isfinite(middle):
            axis.plot([middle], [j + 0.15], "|", color=INK, markersize=13, markeredgewidth=2)
        lost = "" if finite.all() else f" – {number_of(int((~finite).sum()), 'run')} diverged"
        axis.text(
            0.01,
            j - 0.24,
            clipped(name, 42 - len(lost)) + lost,
            transform=axis.get_yaxis_transform(),
            va="center",
            fontsize=10,
        )
    axis.set(ylim=(len(rows) - 0.5, -0.5), yticks=[])
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=5)
    axis.ticklabel_format(axis="x", useOffset=False)
    axis.grid(axis="x", color=INK, alpha=0.15)
    if not any(np.isfinite(row).any() for row in rows):
        axis.set_xticks([])


def under(condition: plan.Condition) -> str:
    return f": {plan.label(condition)}" if condition else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lines(
    results: Results,
    place: int,
    table: Callable[[ArmResult], np.ndarray],
    x0: int = 1,
    log: bool = False,
) -> Callable[[Axes], None]:
    """Return a function that paints mean and band over seeds, one line per arm."""

    def paint(axis: Axes) -> None:
        for j, arm in enumerate(results.arms[place]):
            rows = table(arm)
            if log:
                rows = np.log10(np.where(rows > 0, rows, np.nan))
            mean, sd = series.band(rows)
            low = mean - np.nan_to_num(sd)
            high = mean + np.nan_to_num(sd)
            if log:
                low, mean, high = 10**low, 10**mean, 10**high
            x = np.arange(len(mean)) + x0
            style = look(j)
            axis.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
            every = max(1, len(mean) // 6)
            axis.plot(x, mean, **style, linewidth=1.6, markersize=4.5, markevery=every)
        axis.grid(color=INK, alpha=0.15)
        ticks = cast("MaxNLocator", axis.xaxis.get_major_locator())
        ticks.set_params(integer=True, nbins=6)
        if log:
            axis.set_yscale("log")
            plain_log(axis.yaxis)

    return paint


def curves(results: Results, place: int, name: str) -> Panel:
    """Draw a column of the history over the epochs: validation_accuracy or train_accuracy."""
    paint = _lines(results, place, lambda arm: 100 * curve(arm, name))

    def paint_curves(axis: Axes) -> None:
        paint(axis)
        axis.set(xlabel="epoch", ylabel=f"{name.replace('_', ' ')} (%)")

    caption = f"{_capital(name.replace('_', ' '))}{under(results.conditions[place])}"
    return Panel(caption, draw(paint_curves, f"{caption}, over the epochs"))


def courses(results: Results, place: int) -> Panel:
    """Draw how the validation accuracy differs from the baseline's along the epochs: the mean over
    seeds, with the interval of each epoch, a line for each arm.
    """
    rows = {j: course for (i, j), course in series.courses(results).items() if i == place}
    drawn = {j: course for j, course in rows.items() if course is not None}

    def paint(axis: Axes) -> None:
        if results.study.metric == "accuracy":
            margin = 100 * plan.margin(results.study)
            axis.axhspan(-margin, margin, color=INK, alpha=0.13, linewidth=0)
        axis.axhline(0, color=INK, linewidth=0.8)
        for j, course in drawn.items():
            style = look(j)
            low, mean, high = (100 * values for values in (course.low, course.mean, course.high))
            axis.fill_between(
                course.epochs, low, high, color=style["color"], alpha=0.18, linewidth=0
            )
            every = max(1, len(mean) // 6)
            axis.plot(course.epochs, mean, **style, linewidth=1.6, markersize=4.5, markevery=every)
        axis.grid(color=INK, alpha=0.15)
        ticks = cast("MaxNLocator", axis.xaxis.get_major_locator())
        ticks.set_params(integer=True, nbins=6)
        axis.set(xlabel="epoch", ylabel="difference (pp)")

    caption = f"Difference in validation accuracy{under(results.conditions[place])}"
    return Panel(caption, draw(paint, f"{caption}, over the epochs"))


def gradient_norms(results: Results, place: int) -> Panel:
    """Draw the gradient norms over the first steps."""
    paint = _lines(results, place, series.gradient_norms, log=True)

    def paint_norms(axis: Axes) -> None:
        paint(axis)
        axis.set(xlabel="step", ylabel="gradient norm (log)")

    caption = f"Gradient norm{under(results.conditions[place])}"
    return Panel(caption, draw(paint_norms, f"{caption}, over the first steps"))


def reliability(results: Results, place: int, j: int) -> Panel:
    """Draw accuracy against confidence, pooled over seeds, with bars for the share of the images at
    that confidence.
    """
    arm = results.arms[place][j]
    style = look(j)
    ece = ECE
    count, confidence, accuracy = series.calibration(arm)

    def paint(axis: Axes) -> None:
        bins = len(count)
        if bins:
            centres = (np.arange(bins) + 0.5) / bins
            axis.bar(
                centres,
                count / count.sum(),
                0.9 / bins,
                color=style["color"],
                alpha=0.3,
                linewidth=0,
            )
            some = count > 0
            axis.plot(confidence[some], accuracy[some], **style, linewidth=1.4, markersize=4.5)
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence (share)", ylabel="accuracy (share)")
        axis.set(xticks=[0, 0.25, 0.5, 0.75, 1], yticks=[0, 0.25, 0.5, 0.75, 1])

    text = f"ECE {tables.spread_of(ece, values(arm, 'ece'))} {ece.unit}"
    lost = f", without {len(series.diverged(arm))} diverged" if series.diverged(arm) else ""
    where = under(results.conditions[place])
    label = f"Reliability of {arm.name}{where}: {text}"
    return Panel(f"{arm.name}: {text}{lost}", draw(paint, label, 262, 245, right=16))


def confusion(results: Results, place: int, j: int) -> Panel:
    """Draw the confusion matrix, pooled over seeds: shares of each true class; of many classes the
    largest confusions.
    """
    arm = results.arms[place][j]
    counts = series.confusion(arm)
    lost = f", without {len(series.diverged(arm))} diverged" if series.diverged(arm) else ""
    caption = f"{arm.name}{lost}"
    label = f"Confusion matrix of {arm.name}{under(results.conditions[place])}"
    if counts is None:
        return Panel(caption, draw(_all_diverged, label))
    if len(arm.class_names) > MATRIX_CLASSES:
        return Panel(caption, _largest_confusions(counts, arm.class_names, label))
    return Panel(caption, _matrix(series.shares(counts), arm.class_names, label))


def _all_diverged(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.text(0.5, 0.5, "all runs diverged", transform=axis.transAxes, ha="center", va="center")


def _matrix(shares: np.ndarray, class_names: Sequence[str], label: str) -> str:
    """Draw shares of each true class, float64[K, K], as SVG; a few classes with their names."""
    from matplotlib.colors import to_rgba

    names = [clipped(str(name), 14) for name in class_names]
    named = len(names) <= LABELLED
    longest = max(map(_width, names)) if named else 0

    def paint(axis: Axes) -> None:
        axis.set(xlabel="predicted class", ylabel="true class")
        axis.spines[:].set_visible(False)
        image = np.empty((*shares.shape, 4))
        image[..., :3] = to_rgba(SERIES[0])[:3]
        image[..., 3] = 0.75 * np.sqrt(shares)
        axis.imshow(image, interpolation="none", aspect="auto")
        if not named:
            axis.locator_params(integer=True, nbins=6)
            axis.set(xlabel="predicted class (number)", ylabel="true class (number)")
            return
        axis.set_xticks(
            range(len(names)), names, rotation=90, ha="right", va="center", rotation_mode="anchor"
        )
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(length=0)
        for true, row in enumerate(shares):
            for predicted, share in enumerate(row):
                if share >= 0.005:
                    axis.text(
                        predicted, true, f"{100 * share:.0f}", ha="center", va="center", fontsize=9
                    )

    edge = round(longest + 30) if named else 56
    side = min(255 + edge, 360)
    margins = {"left": edge, "bottom": edge if named else 44, "top": 6, "right": 6}
    return draw(paint, label, side, side, **margins)


def _largest_confusions(counts: np.ndarray, class_names: Sequence[str], label: str) -> str:
    """Draw the largest confusions of a matrix int64[K, K] as bars, as SVG."""
    mistakes = largest_confusions(counts, BARS)
    names = [clipped(str(name), BAR_NAME) for name in class_names]
    longest = max([_width(names[m.true]) + _width(names[m.predicted]) for m in mistakes], default=0)

    def paint(axis: Axes) -> None:
        confusion_bars(axis, mistakes, names, BAR_NAME)
        axis.grid(axis="x", color=INK, alpha=0.15)

    margins = {"left": round(0.75 * longest + 32), "bottom": 40, "top": 6}
    return draw(paint, label, 360, 60 + 17 * max(len(mistakes), 3), **margins)


def _width(name: str) -> float:
    """Estimate the pixels that a name takes; characters from U+2E80 on (Chinese, say) are wide."""
    return sum(5.8 if ord(c) < 0x2E80 else 10.5 for c in name)


def along(results: Results, name: str, others: plan.Condition, places: Sequence[int]) -> Panel:
    """Draw the study's metric against a field of the conditions, the others fixed."""
    scale = scales(results.study)[results.study.metric]
    x = [float(results.conditions[i][name]) for i in places]

    def paint(axis: Axes) -> None:
        for j in range(len(results.arm_names)):
            per_place = [
                scale.factor * values(results.arms[i][j], results.study.metric) for i in places
            ]
            mean = np.array([series.mean(row) for row in per_place])
            sd = np.nan_to_num([series.sd(row) for row in per_place])
            axis.errorbar(x, mean, sd, **look(j), linewidth=1.6, markersize=5.5, capsize=3)
        if name != "label_noise":
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set_xticks(x, [short(value) for value in x])
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.grid(color=INK, alpha=0.15)
        axis.set(xlabel=AXES[name], ylabel=scale.label)

    caption = f"{_capital(scale.name)} against {name.replace('_', ' ')}{under(others)}"
    return Panel(caption, draw(paint, caption))


AXES = {
    "label_noise": "label noise (share of wrong labels)",
    "long_tail": "long tail (largest over smallest class, log)",
    "fraction": "fraction (share of the images, log)",
}


def tuning(results: Results, place: int, name: str) -> Panel:
    """Draw the mean scores of all trials over a hyperparameter; a ring marks what was chosen, lines
    join trials that differ in nothing else.
    """
    study = results.study
    scale = scales(study)[study.metric]

    def paint(axis: Axes) -> None:
        axis.set_xscale("log")
        for j, arm in enumerate(results.arms[place]):
            having = [trial for trial in trials_of(study, arm) if name in trial.values]
            having.sort(key=lambda trial: trial.values[name])
            x = [trial.values[name] for trial in having]
            y = [scale.factor * float(np.mean(series.scores(trial))) for trial in having]
            style = look(j)
            (line,) = axis.plot(x, y, **style, linewidth=1.4, markersize=4.5)
            if any(len(trial.values) > 1 for trial in having):
                line.set_linestyle("none")
            chosen = [run.chosen for run in arm.runs]
            rings = [k for k, trial in enumerate(having) if trial.values in chosen]
            axis.plot(
                [x[k] for k in rings],
                [y[k] for k in rings],
                "o",
                markersize=11,
                markerfacecolor="none",
                markeredgecolor=style["color"],
                markeredgewidth=1.6,
            )
        plain_log(axis.xaxis)
        axis.grid(color=INK, alpha=0.15)
        axis.set(xlabel=f"{words(name)} (log)", ylabel=f"{scale.label}, validation")

    named = words(name)
    caption = f"{named if '.' in named else _capital(named)}{under(results.conditions[place])}"
    return Panel(caption, draw(paint, f"{caption}: {scale.name} on validation over its values"))
