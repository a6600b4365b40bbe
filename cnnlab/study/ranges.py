"""Which hyperparameters a study chooses for each arm, and the values that it tries. Imports no jax.

The values of several hyperparameters are the points of a Halton sequence, spread evenly in their
logarithms: any number of them fills the ranges, the first few as well as all.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cnnlab import config as settings
from cnnlab.config import Recipe
from cnnlab.errors import InputError, unknown
from cnnlab.study.arms import OF_CONDITIONS, SHARED, SHORT_NAMES

# Settings whose parts have hyperparameters that can be chosen.
PARTS = ("model", "loss", "optimizer", "schedule", "average", "augment")
# What is not chosen: what is trained on, and for how long
NEVER_TUNED = ("image_size", "label_noise", "long_tail", "fraction", "epochs", "microbatches")
DIGITS = 4  # significant ones of a value that is tried, so that it can be written on a command line
Point = Mapping[str, float]  # values by the names of their ranges


@dataclass(frozen=True)
class Range:
    """Where the values of a hyperparameter are tried.

    Attributes:
      name: a setting, such as learning_rate, or a part's hyperparameter, such as loss.gamma.
      low, high: its ends, 0 < low < high.
      is_whole: whether it takes whole numbers only.
    """

    name: str
    low: float
    high: float
    is_whole: bool = False

    @property
    def setting(self) -> str:
        """The setting that it changes: learning_rate, or loss of loss.gamma."""
        return self.name.partition(".")[0]

    @property
    def hyperparameter(self) -> str:
        """The hyperparameter of the setting's part; empty for a setting that has no part."""
        return self.name.partition(".")[2]

    def value(self, share: float) -> float:
        """Return the value at a share of the way from low to high, in logarithms."""
        exact = self.low * (self.high / self.low) ** share
        if self.is_whole:
            return min(max(round(exact), math.ceil(self.low)), math.floor(self.high))
        rounded = float(f"{exact:.{DIGITS}g}")
        return min(max(rounded, self.low), self.high)

    def share(self, value: float) -> float:
        """Return how far a value is along the way, from 0 to 1."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def __str__(self) -> str:
        return f"{self.name}={_text(self.low)}..{_text(self.high)}"


def _text(number: float) -> str:
    """Format a number exactly, as it would be written."""
    return repr(number).removesuffix(".0")


@functools.cache
def parse_ranges(words: Sequence[str]) -> tuple[Range, ...]:
    """Parse `--tune`, each word a range.

    Raises:
      InputError: not name=LOW..HIGH with 0 < LOW < HIGH, an unknown setting, or one twice.

    >>> list(map(str, parse_ranges(("lr=1e-4..1e-1", "loss.gamma=0.5..5"))))
    ['learning_rate=0.0001..0.1', 'loss.gamma=0.5..5']
    """
    ranges: dict[str, Range] = {}
    for word in words:
        found = _range(word)
        if found.name in ranges:
            raise InputError(f"--tune {word}: {found.name} has a range already")
        ranges[found.name] = found
    return tuple(ranges.values())


def _range(word: str) -> Range:
    where = f"--tune {word}"
    written, _, bounds = word.partition("=")
    name = written.replace("-", "_")
    name = SHORT_NAMES.get(name, name)
    ends = [_number(text) for text in bounds.split("..")]
    if len(ends) != 2 or not 0 < ends[0] < ends[1] < math.inf:
        raise InputError(
            f"{where}: wanted NAME=LOW..HIGH with 0 < LOW < HIGH, such as learning_rate=1e-4..1e-1 "
            "or loss.gamma=0.5..5"
        )
    setting, dot, hyperparameter = name.partition(".")
    if dot:
        if setting not in PARTS:
            raise unknown("part to tune", setting, PARTS)
        if not hyperparameter.isidentifier():
            raise InputError(f"{where}: wanted a hyperparameter, such as loss.gamma=0.5..5")
    elif name not in _numeric():
        raise unknown("setting to tune", name, sorted(_numeric()))
    return Range(name, *ends, is_whole=not dot and is_whole(name))


def _number(text: str) -> float:
    """Parse a number; NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def is_whole(setting: str) -> bool:
    """Return whether a setting takes whole numbers only."""
    return float not in _numeric()[setting]


@functools.cache
def _numeric() -> Mapping[str, tuple[type, ...]]:
    """Return the settings that are numbers and may be tuned, with their types."""
    fixed = {*SHARED, *OF_CONDITIONS, *NEVER_TUNED}
    found = {}
    for name, hint in typing.get_type_hints(Recipe).items():
        kinds = settings.value_types(hint)
        if name not in fixed and {int, float} & {*kinds} and bool not in kinds:
            found[name] = kinds
    return MappingProxyType(found)


def points(ranges: Sequence[Range], budget: int) -> list[Point]:
    """List the values that are tried: of several ranges together, the same number whatever they
    are; none without ranges.

    Source: Halton, 1960, Numerische Mathematik 2; the unscrambled sequence without its first point,
    the corner.

    >>> points(parse_ranges(("lr=1e-4..1",)), 3)
    [{'learning_rate': 0.01}, {'learning_rate': 0.001}, {'learning_rate': 0.1}]
    """
    if not ranges:
        return []
    from scipy.stats import qmc  # takes a second

    sequence = qmc.Halton(len(ranges), scramble=False).fast_forward(1)
    shares = sequence.random(budget)
    return [
        {r.name: r.value(share) for r, share in zip(ranges, row, strict=True)} for row in shares
    ]
