"""How numbers are written, in one place: HTML and Markdown show the same characters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cnnlab.metrics import METRICS, Metric
from cnnlab.study import plan
from cnnlab.study.plan import Study

NONE = "–"  # what is not there: nothing to say, or not finite
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Scale:
    """How a metric is shown: times `factor`, to so many decimals, in a unit; differences may have
    another unit.
    """

    name: str
    unit: str
    difference_unit: str
    factor: float
    digits: int

    @property
    def label(self) -> str:
        """Name and unit, for an axis or a column."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def difference_label(self) -> str:
        """Name and unit of a difference."""
        return f"difference in {self.name}" + (
            f" ({self.difference_unit})" if self.difference_unit else ""
        )

    def value(self, value: float) -> str:
        """Format a value without its unit."""
        return fixed(self.factor * value, self.digits)

    def difference(self, value: float) -> str:
        """Format a difference without its unit, with a sign unless it rounds to zero."""
        return signed(self.factor * value, self.digits)

    def interval(self, low: float, high: float, signs: bool = False) -> str:
        """Format an interval as [low, high]; a dash if neither end is finite."""
        if not (math.isfinite(low) or math.isfinite(high)):
            return NONE
        write = self.difference if signs else self.value
        return f"[{write(low)}, {write(high)}]"

    def with_unit(self, value: float) -> str:
        """Format a size (a margin, say) with the unit of a difference."""
        return f"{self.value(value)} {self.difference_unit}".strip()


def scale(metric: Metric) -> Scale:
    """Return how a metric is shown."""
    difference_unit = metric.unit if metric.difference_unit is None else metric.difference_unit
    return Scale(
        metric.label or metric.name, metric.unit, difference_unit, metric.factor, metric.digits
    )


ACCURACY, ECE = scale(METRICS["accuracy"]), scale(METRICS["ece"])


def scales(study: Study) -> dict[str, Scale]:
    """Return how each metric of a study is shown, by name."""
    return {name: scale(metric) for name, metric in plan.metrics(study).items()}


def fixed(value: float, digits: int) -> str:
    """Format a number to `digits` decimals, with commas between thousands; a dash if it is not
    finite. No negative zero.

    >>> fixed(-1234.567, 1), fixed(-0.001, 2), fixed(float("nan"), 2)
    ('−1,234.6', '0.00', '–')
    """
    if not math.isfinite(value):
        return NONE
    text = f"{abs(value):,.{digits}f}"
    return MINUS + text if value < 0 and text.strip("0.,") else text


def signed(value: float, digits: int) -> str:
    """Format a number as `fixed` does, with a plus if it is positive; infinity is written, as an
    effect without spread is infinite.

    >>> signed(0.126, 2), signed(float("-inf"), 2)
    ('+0.13', '−∞')
    """
    if math.isinf(value):
        return "+∞" if value > 0 else f"{MINUS}∞"
    text = fixed(value, digits)
    return f"+{text}" if value > 0 and text.strip("0.,") else text


def probability(p: float) -> str:
    """Format a p-value to four decimals.

    >>> probability(0.0078125), probability(2e-5)
    ('0.0078', '<0.0001')
    """
    return "<0.0001" if 0 <= p < 0.5e-4 else fixed(p, 4)


def short(value: float) -> str:
    """Format a rate or a level as short as possible: three significant digits.

    >>> short(0.00372759), short(1e-05), short(0.1)
    ('0.00373', '1e-05', '0.1')
    """
    return f"{value:.3g}" if math.isfinite(value) else NONE


def words(name: str) -> str:
    """Format the name of a setting, or of a part's hyperparameter, for people.

    >>> words("learning_rate"), words("loss.gamma")
    ('learning rate', 'loss.gamma')
    """
    return name if "." in name else name.replace("_", " ")


def number_of(count: int, thing: str) -> str:
    """Format a count and its noun.

    >>> number_of(1, "seed"), number_of(8, "seed")
    ('1 seed', '8 seeds')
    """
    plural = "" if count == 1 else "s"
    return f"{count:,} {thing}{plural}"
