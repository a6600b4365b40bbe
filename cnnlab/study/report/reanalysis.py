"""What was computed from a study's kept logits, as a page, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnnlab import files
from cnnlab.errors import InputError
from cnnlab.html.blocks import Block, Panel, Panels, Section, Table, Tabled
from cnnlab.html.markdown import markdown
from cnnlab.html.page import page
from cnnlab.study import plan
from cnnlab.study.reanalysis import KeptStudy, Measured
from cnnlab.study.report import csvs, figures, series
from cnnlab.study.report.numbers import NONE, Scale
from cnnlab.study.report.tables import spread_of

NAME = "reanalysis"
LEAD = (
    "Computed from the logits that the study kept, without training: to look at. Verdicts are only "
    "about {metric}, which was named before the study. Differences are arm minus {baseline} at the "
    "same seed; each interval of {level:g} % holds at every look, for itself alone."
)


def scale_of(measured: Measured) -> Scale:
    """Return how a metric is shown."""
    shown = measured.shown
    difference_unit = shown.unit if shown.difference_unit is None else shown.difference_unit
    return Scale(measured.label, shown.unit, difference_unit, shown.factor, shown.digits)


def table(study: KeptStudy, measured: Measured) -> Table:
    """Tabulate a metric: each arm's mean over seeds, and its difference from the baseline."""
    scale = scale_of(measured)
    rows = []
    for (i, j), values in sorted(measured.values.items()):
        gap = measured.gap((i, j), study.baseline)
        low, high = _interval(study, gap)
        rows.append(
            (
                plan.label(study.conditions[i]),
                study.arm_names[j],
                str(len(values)),
                spread_of(scale, values),
                scale.difference(series.mean(gap)) if len(gap) else NONE,
                scale.interval(low, high, signs=True),
            )
        )
    unit = f" ({scale.difference_unit})" if scale.difference_unit else ""
    head = ("condition", "arm", "seeds", scale.label, f"difference{unit}", "interval")
    return Table(head, rows)


def _interval(study: KeptStudy, gap: np.ndarray) -> tuple[float, float]:
    if not len(gap):
        return np.nan, np.nan
    return series.interval(gap, study.manifest.alpha)


def lines(study: KeptStudy, measured: Sequence[Measured]) -> list[str]:
    """Format tables for a terminal, a metric after the other."""
    found = []
    for row in measured:
        tabulated = table(study, row)
        if len(study.conditions) == 1:
            tabulated = Table(tabulated.head[1:], [cells[1:] for cells in tabulated.rows], 1)
        found += [*_aligned(tabulated), ""]
    return found + [f"left out: {line}" for line in study.absent]


def _aligned(tabulated: Table) -> list[str]:
    rows = [tabulated.head, *tabulated.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < tabulated.words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _panels(study: KeptStudy, measured: Measured) -> list[Panel]:
    panels = []
    for i, condition in enumerate(study.conditions):
        places = [(i, j) for j in range(len(study.arm_names)) if (i, j) in measured.values]
        if not places:
            continue
        gaps = [measured.gap(place, study.baseline) for place in places]
        intervals = []
        for gap in gaps:
            low, high = _interval(study, gap)
            middle = float(np.median(gap)) if len(gap) else np.nan
            intervals.append((low, middle, high))
        panels += figures.strips(
            figures.Strips(
                [study.arm_names[j] for _, j in places],
                [measured.values[place] for place in places],
                gaps,
                intervals,
                scale_of(measured),
                measured.shown.larger_is_better,
                where=figures.under(condition),
            )
        )
    return panels


def sections(study: KeptStudy, measured: Sequence[Measured]) -> list[Section]:
    """Build the page, a section for each metric."""
    return [Section(row.label, _blocks(study, row)) for row in measured]


def _blocks(study: KeptStudy, measured: Measured) -> list[Block]:
    return [
        Panels(lambda: _panels(study, measured), pairs=True),
        Tabled(table(study, measured)),
    ]


def csv_rows(
    study: KeptStudy, measured: Sequence[Measured]
) -> tuple[list[str], list[list[object]]]:
    """Return the header and rows of reanalysis.csv: a row for each condition, arm and seed."""
    names = list(dict.fromkeys(name for condition in study.conditions for name in condition))
    rows: list[list[object]] = []
    for (i, j), cells in sorted(study.cells.items()):
        runs = [run for cell in cells for run in cell.result.runs]
        fields = [study.conditions[i].get(name) for name in names]
        for k, run in enumerate(runs):
            values = [row.values[i, j][k] if (i, j) in row.values else np.nan for row in measured]
            written = [float(value) if np.isfinite(value) else None for value in values]
            rows.append([*fields, study.arm_names[j], run.seed, *written])
    return [*names, "arm", "seed", *[row.name for row in measured]], rows


def write(study: KeptStudy, measured: Sequence[Measured], folder: Path) -> list[Path]:
    """Write reanalysis.html, reanalysis.md and reanalysis.csv, each in one rename.

    Raises:
      InputError: the folder cannot be written.
    """
    planned = study.manifest
    lead = LEAD.format(
        metric=planned.metric, baseline=planned.baseline, level=100 * (1 - planned.alpha)
    )
    if study.absent:
        lead += f" Left out: {'; '.join(study.absent)}."
    title = "Metrics from kept logits"
    parts = sections(study, measured)
    texts = {
        f"{NAME}.html": page(title, lead, parts),
        f"{NAME}.md": markdown(title, lead, parts, f"{NAME}.html"),
        f"{NAME}.csv": csvs.text(*csv_rows(study, measured)),
    }
    try:
        for name, text in texts.items():
            files.write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    return [folder / name for name in texts]
