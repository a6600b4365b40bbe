"""Figures, written as PNG. matplotlib is imported when one is drawn: it takes a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

TRAIN, VALIDATION = "#4477aa", "#cc6677"  # colour-blind safe (Tol)


def _figure(columns: int, width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def curves(history: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """Loss and accuracy over the epochs.

    Args:
      history: the rows of metrics.jsonl.
      path: PNG to write.
      title: above the figure.
    """
    figure, axes = _figure(2, 9, 3.4)
    epochs = [row["epoch"] for row in history]
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for kind, colour in (("train", TRAIN), ("validation", VALIDATION)):
            if history and f"{kind}_{name}" in history[0]:
                values = [row[f"{kind}_{name}"] for row in history]
                axis.plot(epochs, values, color=colour, marker="o", markersize=3, label=kind)
                axis.annotate(f"{values[-1]:.3f}", (epochs[-1], values[-1]), (4, 0), textcoords="offset points",
                              color=colour, fontsize=8, va="center")  # fmt: skip
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def confusion(matrix: Sequence[Sequence[int]], class_names: Sequence[str], path: Path, title: str = "") -> None:
    """Confusion matrix: rows true, columns predicted, each row as shares of its class.

    Args:
      matrix: K rows of K counts.
      class_names: K names.
      path: PNG to write.
      title: above the figure.
    """
    classes = len(matrix)
    side = min(3 + 0.45 * classes, 16)
    figure, (axis,) = _figure(1, side + 1, side)
    shares = [[n / max(sum(row), 1) for n in row] for row in matrix]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true class")
    if classes <= 30:
        axis.set_xticks(range(classes), class_names, rotation=45, ha="right")
        axis.set_yticks(range(classes), class_names)
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                if share >= 0.005:
                    axis.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=8,
                              color="white" if share > 0.5 else "black")  # fmt: skip
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)
