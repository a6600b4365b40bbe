"""What the docstrings of the losses say, for lists, tables and error messages."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cnnlab import losses


@dataclass(frozen=True)
class Entry:
    """A loss as its docstring describes it.

    Attributes:
      name, aliases: to be called by.
      summary: the docstring's first line.
      formula: the lines indented below it.
      hyperparameters: name -> (default, or inspect.Parameter.empty; what it is, with its range).
      source: authors, year, title, link.
    """

    name: str
    aliases: tuple[str, ...]
    summary: str
    formula: str
    hyperparameters: dict[str, tuple[Any, str]]
    source: str


def entry(function: Callable) -> Entry:
    """The entry of a loss; a docstring of another form, or none, leaves parts of it empty."""
    arguments = dict(re.findall(r"^  (\w+): (.*(?:\n    .*)*)", _block(function, "Args"), re.MULTILINE))
    parameters = list(inspect.signature(function).parameters.values())[2:]
    blocks = re.split(r"\n\s*\n", _docstring(function))
    formula = next((b for b in blocks[1:] if all(line.startswith("    ") for line in b.splitlines())), "")
    return Entry(
        name=getattr(function, "__name__", str(function)),
        aliases=tuple(alias for alias, f in losses.ALIASES.items() if f is function),
        summary=" ".join(blocks[0].split()),
        formula=textwrap.dedent(formula),
        hyperparameters={p.name: (p.default, " ".join(arguments.get(p.name, "").split())) for p in parameters},
        source=section(function, "Source"),
    )


def section(function: Callable, title: str) -> str:
    """What follows `title:` in a docstring, to the end of its paragraph or to the next such line, in one line."""
    return " ".join(_block(function, title).split())


def _block(function: Callable, title: str) -> str:
    found = re.search(rf"^{title}:(.*?)(?=^[A-Z][a-z]+:|\n\s*\n|\Z)", _docstring(function), re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def _docstring(function: Callable) -> str:
    """The function's own: an object's is its class's."""
    return (inspect.getdoc(function) or "") if inspect.isroutine(function) else ""


def accepted(function: Callable) -> str:
    """The hyperparameters of a loss in a line: 'gamma in [0, inf) (default 2.0)'."""
    described = []
    for name, (default, text) in entry(function).hyperparameters.items():
        found = re.match(r"in [\[(][^\])]*[\])]", text)
        limits = f" {found[0]}" if found else f": {text.split(';')[0].rstrip('.')}" if text else ""
        given = "" if default is inspect.Parameter.empty else f" (default {default})"
        described.append(f"{name}{limits}{given}")
    return "; ".join(described) or "none"


def listing() -> str:
    """Every loss with its formula, hyperparameters, defaults and source, for the terminal."""
    blocks = []
    for function in losses.LOSSES.values():
        known = entry(function)
        lines = [", ".join((known.name, *known.aliases)) + f": {known.summary}"]
        lines += [f"    {line}" for line in known.formula.split("\n")]
        for name, (default, text) in known.hyperparameters.items():
            shown = "required" if default is inspect.Parameter.empty else f"default {default}"
            lines.append(f"  {name} ({shown}): {text}")
        blocks.append("\n".join([*lines, f"  {known.source}"]))
    return "\n\n".join(blocks)
