"""A study's results as one HTML page, the same as Markdown, and the numbers as CSV.

document.py has the order of it all; claims.py the sentences, tables.py the tables, figures.py the panels, which draw
what series.py computes; numbers.py writes the numbers; page.py, markdown.py and this file write it out.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnlab.report import document, markdown, page, tables
from cnnlab.study.results import Results, verdicts


def write(results: Results, folder: Path) -> list[Path]:
    """Write report.html, report.md, results.csv and verdicts.csv, each in one rename.

    Args:
      results: of a finished study.
      folder: made if it is not there.

    Returns:
      The paths, report.html first. Their bytes depend on the results alone; time and machine stand in the report's
      sections Compute and To repeat it, and nowhere in the CSV.
    """
    found = verdicts(results)
    parts = document.sections(results, found)
    texts = {
        "report.html": page.page(results, parts),
        "report.md": markdown.markdown(results, parts),
        "results.csv": _csv(*tables.csv_runs(results)),
        "verdicts.csv": _csv(*tables.csv_verdicts(results, found)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _replace(folder / name, text)
    return [folder / name for name in texts]


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Floats as repr writes them, so that they are read back as they were; None is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
