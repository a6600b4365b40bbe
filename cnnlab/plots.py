"""Figures, written as PNG. matplotlib is imported when one is drawn: it takes a second."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, ParamSpec, TypeAlias, cast

from cnnlab.types import Row

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    from cnnlab.metrics import Mistake

P = ParamSpec("P")

# (axis, x, loss, gradient), as report_card.curve gives it.
Curve: TypeAlias = "tuple[str, np.ndarray, np.ndarray, np.ndarray]"

TRAIN, VALIDATION = "#4477aa", "#cc6677"  # colour-blind safe (Tol), as is SERIES
SERIES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#666666", "#000000")
GREY = "#bbbbbb"
VERDICTS = {"holds": "#228833", "refuted": "#ee6677", "undecided": "#666666"}
FARTHEST = 100  # margins that a figure of intervals shows
# Classes up to which a confusion matrix is drawn as one: with names and numbers that can be read.
MATRIX_CLASSES = 50
LONGEST_NAME = 28  # characters of a class's name that are drawn
# Prefixes of columns of an epoch's metrics, with the colour and the name of their curve.
KINDS = {
    "train": (TRAIN, "train"),
    "validation": (VALIDATION, "validation"),
    "validation_last": (GREY, "validation, last weights"),  # where their average is kept
}


def literally(draw: Callable[P, None]) -> Callable[P, None]:
    """Wrap a function that draws, so that a text such as "$5" is drawn as it is and not as TeX, and
    a character that the font lacks costs no warning.
    """

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> None:
        import matplotlib

        with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            draw(*args, **kwargs)

    return drawn


def in_legend(name: str) -> str:
    """Return a name as a legend shows it: matplotlib leaves out those that begin with "_"."""
    return f" {name}" if name.startswith("_") else name


def clipped(text: str, length: int) -> str:
    """Shorten a text to a number of characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _figure(columns: int, width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


@literally
def curves(history: Sequence[Row], path: Path, title: str = "") -> None:
    """Plot loss and accuracy over the epochs; with an average of the weights, those of the last
    weights too.

    Args:
      history: the rows of metrics.jsonl.
      path: PNG to write.
      title: above the figure.
    """
    figure, axes = _figure(2, 9, 3.4)
    epochs = [row["epoch"] for row in history]
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for kind, (colour, label) in KINDS.items():
            if history and f"{kind}_{name}" in history[0]:
                values = [row[f"{kind}_{name}"] for row in history]
                axis.plot(
                    epochs,
                    values,
                    color=colour,
                    marker="o",
                    markersize=3,
                    label=label,
                )
                axis.annotate(
                    f"{values[-1]:.3f}",
                    (epochs[-1], values[-1]),
                    (4, 0),
                    textcoords="offset points",
                    color=colour,
                    fontsize=8,
                    va="center",
                )
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120, format="png")


def confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path, title: str = "") -> None:
    """Plot a confusion matrix; of many classes the largest confusions.

    Args:
      matrix: int[K, K], counts (true class, predicted class).
      class_names: K names.
      path: PNG to write.
      title: above the figure.
    """
    if len(matrix) <= MATRIX_CLASSES:
        _matrix(matrix, class_names, path, title)
    else:
        _largest(matrix, class_names, path, title)


@literally
def _matrix(matrix: np.ndarray, class_names: Sequence[str], path: Path, title: str) -> None:
    """Draw rows true, columns predicted, each row as shares of its class."""
    classes = len(matrix)
    names = [clipped(name, LONGEST_NAME) for name in class_names]
    side = min(3 + 0.45 * classes, 16)
    figure, (axis,) = _figure(1, side + 1, side)
    shares = [[n / max(sum(row), 1) for n in row] for row in matrix.tolist()]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true class")
    axis.set_xticks(range(classes), names, rotation=45, ha="right")
    axis.set_yticks(range(classes), names)
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if share >= 0.005:
                axis.text(
                    j,
                    i,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share > 0.5 else "black",
                )
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120, format="png")


@literally
def _largest(matrix: np.ndarray, class_names: Sequence[str], path: Path, title: str) -> None:
    """Draw a bar for each of the largest confusions."""
    from cnnlab.metrics import largest_confusions  # here: it imports jax

    mistakes = largest_confusions(matrix)
    figure, (axis,) = _figure(1, 9, 1.6 + 0.27 * max(len(mistakes), 2))
    confusion_bars(axis, mistakes, class_names, LONGEST_NAME)
    for bar, mistake in enumerate(mistakes):
        axis.text(
            mistake.share,
            bar,
            f" {100 * mistake.share:.0f} % ({mistake.count:,})",
            va="center",
            fontsize=8,
        )
    axis.set_xlim(0, 1.15 * max([mistake.share for mistake in mistakes], default=1.0))
    axis.set_title(f"{title}\nlargest confusions of {len(matrix):,} classes".strip(), fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, format="png")


def confusion_bars(
    axis: Axes, mistakes: Sequence[Mistake], class_names: Sequence[str], length: int
) -> None:
    """Draw confusions as bars, the first on top: true class, predicted class, share of the former.

    Args:
      axis: to draw on.
      mistakes: as `metrics.largest_confusions` gives them.
      class_names: K names.
      length: characters of a name that are drawn.
    """
    names = [
        " → ".join(clipped(class_names[k], length) for k in (mistake.true, mistake.predicted))
        for mistake in mistakes
    ]
    axis.barh(range(len(mistakes)), [mistake.share for mistake in mistakes], 0.7, color=SERIES[0])
    axis.set_yticks(range(len(mistakes)), names, fontsize=8)
    axis.set(ylim=(max(len(mistakes), 1) - 0.5, -0.5), xlabel="share of the true class")
    axis.tick_params(axis="y", length=0)
    if not mistakes:
        axis.text(0.5, 0.5, "no mistakes", transform=axis.transAxes, ha="center", va="center")


@literally
def loss_curves(
    curves: Mapping[str, Curve], path: Path | IO[bytes], reference: Curve | None = None
) -> None:
    """Plot losses and the lengths of their gradients as the true class's probability grows.

    For cosine losses the cosine takes the place of the probability.

    Up to eight losses share two panels, a row for each kind of axis; more have a panel each, with
    the gradient dashed.

    Args:
      curves: name -> (axis, x, loss, gradient), as report_card.curve gives them.
      path: PNG to write.
      reference: such a curve, drawn in grey behind each small panel that has its axis.
    """
    figure = _overlaid(curves) if len(curves) <= len(SERIES) else _apart(curves, reference)
    figure.savefig(path, dpi=110, format="png")


def _overlaid(curves: Mapping[str, Curve]):
    from matplotlib.figure import Figure

    axes_of = list(dict.fromkeys(curve[0] for curve in curves.values()))
    figure = Figure(figsize=(11, 3.8 * len(axes_of)), layout="constrained")
    grid = figure.subplots(len(axes_of), 2, squeeze=False)
    for (left, right), kind in zip(grid, axes_of, strict=True):
        shown = [
            (n, c, colour)
            for (n, c), colour in zip(curves.items(), SERIES, strict=False)
            if c[0] == kind
        ]
        for i, (name, (_, x, loss, gradient), colour) in enumerate(shown):
            # Where curves coincide the later ones have gaps
            dashes = "-" if i == 0 else (0, (2 + 2 * i, 2))
            left.plot(x, loss, color=colour, linestyle=dashes, label=in_legend(name))
            right.plot(x, gradient, color=colour, linestyle=dashes, label=in_legend(name))
        for axis, label, part in ((left, "loss", 2), (right, "|gradient| in the logits", 3)):
            axis.set(
                xlabel=f"{kind} of the true class",
                ylabel=label,
                ylim=_limits(*[cast("np.ndarray", c[part]) for _, c, _ in shown]),
            )
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _apart(curves: Mapping[str, Curve], reference: Curve | None):
    from matplotlib.figure import Figure

    columns = 5
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(14, 2.3 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in panels[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, (kind, x, loss, gradient)) in zip(panels, curves.items(), strict=False):
        if reference is not None and reference[0] == kind:
            axis.plot(reference[1], reference[2], color=GREY, linewidth=2.5)
            axis.plot(reference[1], reference[3], color=GREY, linewidth=2.5, linestyle="--")
        axis.plot(x, loss, color=TRAIN)
        axis.plot(x, gradient, color=VALIDATION, linestyle="--")
        axis.set_ylim(*_limits(loss, gradient))
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(kind, fontsize=8, labelpad=1)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "loss (solid) and |gradient| (dashed) against the true class's probability or cosine; "
        "grey: cross-entropy",
        fontsize=10,
    )
    return figure


def _limits(*series: np.ndarray) -> tuple[float, float]:
    """Choose limits from below 0 to above all but the last hundredth of the values.

    What explodes at the edge must not flatten the rest.
    """
    import numpy as np

    top = max(float(np.nanquantile(values, 0.99)) for values in series)
    low = min(0.0, *[float(np.nanquantile(values, 0.01)) for values in series])
    room = 0.05 * (top - low) or 1.0
    return low - room, top + 2 * room


@literally
def scaling(
    lines: Mapping[str, Mapping[int, float]],
    points: Mapping[int, float],
    path: Path,
    title: str = "",
) -> None:
    """Plot images per second over the number of chips, both logarithmic.

    Args:
      lines: by name, images a second by chips; grey where the name is "ideal".
      points: likewise, drawn as marks.
      path: PNG to write.
      title: above the figure.
    """
    figure, (axis,) = _figure(1, 7.5, 4.6)
    colours = iter(SERIES)
    for name, values in lines.items():
        ideal = name == "ideal"
        style: dict[str, str] = {
            "color": GREY if ideal else next(colours),
            "linestyle": ":" if ideal else "-",
        }
        axis.plot(list(values), list(values.values()), label=name, **style)
    axis.plot(list(points), list(points.values()), "o", color="#000000", label="compiled")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    ticks = sorted(set().union(*lines.values()))
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel="chips", ylabel="images/s")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120, format="png")


class Interval(NamedTuple):
    """What is known of a statement of a claim.

    Attributes:
      text: of the statement.
      verdict: holds, refuted or undecided.
      low, mean, high: the interval of the advantage that it claims, and its mean, in margins.
    """

    text: str
    verdict: str
    low: float
    mean: float
    high: float


@literally
def intervals(rows: Sequence[Interval], path: Path) -> None:
    """Plot the intervals of statements, the first on top; those within the grey band do not matter.

    Args:
      rows: to draw.
      path: PNG to write.
    """
    figure, (axis,) = _figure(1, 9, 0.8 + 0.24 * len(rows))
    axis.axvspan(-1, 1, color=GREY, alpha=0.4, linewidth=0)
    axis.axvline(0, color="#000000", linewidth=0.8)
    drawn = set()
    for place, row in enumerate(rows):
        colour = VERDICTS[row.verdict]
        label = "_nolegend_" if row.verdict in drawn else row.verdict
        drawn.add(row.verdict)
        ends = [min(max(end, -FARTHEST), FARTHEST) for end in (row.low, row.high)]
        axis.plot(ends, [place, place], color=colour, linewidth=2.2)
        axis.plot([row.mean], [place], "o", color=colour, markersize=5, label=label)
    axis.set_xscale("symlog", linthresh=2, linscale=1)
    axis.set_xlim(-FARTHEST, FARTHEST)
    ticks = [-100, -50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
    axis.minorticks_off()
    axis.set_yticks(range(len(rows)), [row.text for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("advantage of what is named first, in margins; grey: too small to matter")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.07))
    figure.savefig(path, dpi=120, format="png")


@literally
def contact_sheet(
    columns: Sequence[tuple[str, np.ndarray, Sequence[str]]], path: Path | str, title: str = ""
) -> None:
    """Draw images in a grid, a row for each image and a column for each way to see it.

    Args:
      columns: a heading, images uint8[B, H, W, C] with C of 1 or 3, and what is written below each.
      path: PNG to write.
      title: above the figure.
    """
    from matplotlib.figure import Figure

    rows = len(columns[0][1])
    side = 1.15  # inches
    figure = Figure(figsize=(side * len(columns), (side + 0.2) * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (heading, images, labels) in enumerate(columns):
        grid[0, column].set_title(heading, fontsize=9)
        for axis, image, label in zip(grid[:, column], images, labels, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(label, fontsize=7, labelpad=2)
            axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120, format="png")
