"""Rows as the text of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence


def text(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format rows as CSV. Floats are written as repr writes them, so that they are read back
    exactly; None is empty.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()
