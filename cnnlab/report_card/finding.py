"""What an examination finds, and how it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import SupportsFloat, cast

import numpy as np
from numpy.typing import ArrayLike

from cnnlab.types import Json, JsonObject

REFUTED, NOT_REFUTED, PROVED, NOT_APPLICABLE = "refuted", "not refuted", "proved", "not applicable"


@dataclass(frozen=True)
class Finding:
    """The verdict on one property.

    Attributes:
      property: a name in PROPERTIES.
      verdict: one of the four above.
      detail: the counterexample, or what was measured, or why it does not apply: one line.
      points: how many points were tried.
      data: the same as numbers: logits, label, q, values.
      citation: where it is proved, if it is.
      claimed: whether the loss's docstring or the user says that it holds.
    """

    property: str
    verdict: str
    detail: str = ""
    points: int = 0
    data: dict[str, object] = field(default_factory=dict)
    citation: str = ""
    claimed: bool = False

    def to_json(self) -> JsonObject:
        """Convert the finding to strict JSON: arrays as lists, what is not finite as text."""
        return {name: plain(value) for name, value in vars(self).items()}


def plain(value: object) -> Json:
    """Convert to numbers, text, lists and dictionaries; inf and NaN, which JSON lacks, to text."""
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, (bool, str, type(None))):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    try:
        number = float(cast(SupportsFloat, value))
    except (TypeError, ValueError):
        return str(value)
    return number if np.isfinite(number) else str(number)


def refuted(detail: str, points: int, **data: object) -> Finding:
    return Finding("", REFUTED, detail, points, data)


def not_refuted(detail: str, points: int, **data: object) -> Finding:
    return Finding("", NOT_REFUTED, detail, points, data)


def not_applicable(why: str, **data: object) -> Finding:
    return Finding("", NOT_APPLICABLE, why, 0, data)


def show(values: ArrayLike) -> str:
    """Format a vector or a number for people: [0.9, 0.05, -1e+04]."""
    if np.ndim(values):
        return f"[{', '.join(show(v) for v in cast(Sequence, values))}]"
    return f"{float(cast(SupportsFloat, values)) + 0.0:.4g}"  # no -0
