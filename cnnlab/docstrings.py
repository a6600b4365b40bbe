"""What the docstring of a part says of it, for lists, tables and error messages. Imports no jax."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A part as its docstring describes it.

    Attributes:
      name: of the function.
      summary: the docstring's first paragraph.
      formula: the lines indented below it.
      arguments: name -> what it is, with its range.
      source: authors, year, title, link.
    """

    name: str
    summary: str
    formula: str
    arguments: dict[str, str]
    source: str


@dataclass(frozen=True)
class Limits:
    """An interval: a number is `in` it or not."""

    low: float
    high: float
    text: str

    def __contains__(self, number: float) -> bool:
        above = number > self.low or (self.text.startswith("[") and number == self.low)
        below = number < self.high or (self.text.endswith("]") and number == self.high)
        return above and below

    def __str__(self) -> str:
        return self.text


def entry(function: Callable) -> Entry:
    """Parse the docstring of a function or class; one of another form, or none, leaves parts of the
    entry empty.
    """
    described = re.findall(
        r"^  (\w+(?:, \w+)*): (.*(?:\n    .*)*)", _block(function, "Args"), re.MULTILINE
    )
    arguments = {
        name: " ".join(text.split()) for names, text in described for name in names.split(", ")
    }
    blocks = re.split(r"\n\s*\n", _docstring(function))
    formula = next(
        (b for b in blocks[1:] if all(line.startswith("    ") for line in b.splitlines())), ""
    )
    return Entry(
        name=getattr(function, "__name__", str(function)),
        summary=" ".join(blocks[0].split()),
        formula=textwrap.dedent(formula),
        arguments=arguments,
        source=section(function, "Source"),
    )


def section(function: Callable, title: str) -> str:
    """Return what follows `title:` in a docstring, to the end of its paragraph or to the next such
    line, in one line.
    """
    return " ".join(_block(function, title).split())


def limits(text: str) -> Limits | None:
    """Parse the range that a description states: "in [0, inf), the exponent" is [0, inf).

    >>> 1 in limits("in [0, 1), the share"), str(limits("in (0, inf)")), limits("any")
    (False, '(0, inf)', None)
    """
    match = re.search(r"\bin ([\[(])(-?[\w.]+), (-?[\w.]+)([\])])", text)
    try:
        return (
            Limits(float(match[2]), float(match[3]), match[0].removeprefix("in "))
            if match
            else None
        )
    except ValueError:  # a bound in words
        return None


def accepted(function: Callable, parameters: Mapping[str, inspect.Parameter]) -> str:
    """Describe hyperparameters in a line: 'gamma in [0, inf) (default 2.0)'."""
    arguments = entry(function).arguments
    described = []
    for name, parameter in parameters.items():
        text = arguments.get(name, "")
        match = re.match(r"in [\[(][^\])]*[\])]", text)
        said = f" {match[0]}" if match else f": {text.split(';')[0].rstrip('.')}" if text else ""
        default = (
            ""
            if parameter.default is inspect.Parameter.empty
            else f" (default {parameter.default})"
        )
        described.append(f"{name}{said}{default}")
    return "; ".join(described) or "none"


def _block(function: Callable, title: str) -> str:
    match = re.search(
        rf"^{title}:(.*?)(?=^[A-Z][a-z]+:|\n\s*\n|\Z)",
        _docstring(function),
        re.MULTILINE | re.DOTALL,
    )
    return match[1] if match else ""


def _docstring(function: Callable) -> str:
    """Return the function's own docstring; for a `functools.partial`, that of what it wraps, for an
    object, its `description`.
    """
    function = getattr(function, "func", function)
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        return getattr(function, "description", "")
    text = function.__dict__.get("__doc__") if inspect.isclass(function) else function.__doc__
    return inspect.cleandoc(text or "")
