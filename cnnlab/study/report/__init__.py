"""A study's results as one HTML page, the same as Markdown, and the numbers as CSV.

document.py has the order of it all; claims.py the sentences, tables.py and coverage.py the tables,
figures.py the panels, which draw what series.py computes; numbers.py writes the numbers;
html/page.py, markdown.py, csvs.py and this file write it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cnnlab import files
from cnnlab.errors import InputError
from cnnlab.html.markdown import markdown
from cnnlab.html.page import page as write_page
from cnnlab.study import plan, statistics
from cnnlab.study.report import claims, csvs, document, tables
from cnnlab.study.report.numbers import NONE, Scale, scales
from cnnlab.study.results import Results, Verdict, decide
from cnnlab.study.statistics import Comparison

KINDS = {
    mark + extent: word
    for word, mark in tables.MARKS.items()
    for extent in ("", statistics.BEYOND, statistics.WITHIN)
}


def write(results: Results, folder: Path) -> list[Path]:
    """Write report.html, report.md, results.csv and verdicts.csv, each in one rename.

    Args:
      results: of a finished study.
      folder: made if it is not there.

    Returns:
      The paths, report.html first. Their bytes depend on the results alone; time and machine are
      in the report's sections Compute and To repeat it, and nowhere in the CSV.

    Raises:
      InputError: the folder cannot be written.
    """
    verdicts = decide(results)
    parts = document.sections(results, verdicts)
    texts = {
        "report.html": write_page(claims.title(results), claims.compared(results), parts, KINDS),
        "report.md": markdown(claims.title(results), claims.compared(results), parts),
        "results.csv": csvs.text(*tables.csv_runs(results)),
        "verdicts.csv": csvs.text(*tables.csv_verdicts(results, verdicts)),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            files.write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"the report cannot be written to {folder}: {error.strerror}") from error
    return [folder / name for name in texts]


def brief(results: Results) -> list[str]:
    """Format the verdicts for a terminal: a summary, then one line each."""
    verdicts = decide(results)
    scale = scales(results.study)[results.study.metric]
    lines = [claims.summary(results, verdicts)]
    width = max(len(tables.marked(verdict)) for verdict in verdicts)
    for verdict in verdicts:
        c = verdict.comparison
        name = f"{verdict.arm}, {plan.label(verdict.condition)}"
        numbers = f"{scale.difference(c.mean)} {_interval(scale, c)}"
        lines.append(
            f"  {tables.marked(verdict):<{width}}  {name}: {numbers}; {tables.decided(verdict)}"
        )
    return lines


def _interval(scale: Scale, comparison: Comparison) -> str:
    """Format an interval with its unit, for a terminal."""
    text = scale.interval(comparison.low, comparison.high, signs=True)
    return "(none yet)" if text == NONE else f"{text} {scale.difference_unit}".strip()


STANDING = ("comparison", "seeds", "evidence", "interval", "verdict")


def standings(
    results: Results, verdicts: Sequence[Verdict]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows of a table, as text, of how the comparisons stand while a study runs."""
    scale = scales(results.study)[results.study.metric]
    limit = results.family.comparisons / results.study.alpha
    rows = []
    for verdict in verdicts:
        c = verdict.comparison
        evidence = f"{max(c.evidence, default=1.0):.3g} of {limit:.3g}"
        interval = _interval(scale, c)
        name = f"{verdict.arm}, {plan.label(verdict.condition)}:"
        word = tables.marked(verdict)
        if not c.decided:
            word += f", {tables.expected(c)}"
        rows.append((name, str(c.n), evidence, interval, word))
    return STANDING, rows
