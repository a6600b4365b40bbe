"""This process among those of the run; with one, which is the rule, nothing here costs anything."""

from __future__ import annotations

_index = 0
_count = 1


def index() -> int:
    """Return the number of this process among those of the run."""
    return _index


def count() -> int:
    """Return how many processes the run has."""
    return _count


def joined(index: int, count: int) -> None:
    """Note that this process is one of several from here on."""
    global _index, _count
    _index, _count = index, count
