"""What the docstrings of the losses say, for lists, tables and error messages."""

from __future__ import annotations

import inspect
import re
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
    """The entry of a loss; a docstring of another form leaves parts of it empty."""
    text = inspect.getdoc(function) or ""
    arguments = dict(re.findall(r"^  (\w+): (.*(?:\n    .*)*)", _section(text, "Args:"), re.MULTILINE))
    parameters = list(inspect.signature(function).parameters.values())[2:]
    name = getattr(function, "__name__", str(function))
    return Entry(
        name=name,
        aliases=tuple(alias for alias, f in losses.ALIASES.items() if f is function),
        summary=text.partition("\n")[0],
        formula=_formula(text),
        hyperparameters={p.name: (p.default, " ".join(arguments.get(p.name, "").split())) for p in parameters},
        source=" ".join(_section(text, "Source:").split()),
    )


def _formula(text: str) -> str:
    """The lines indented by four right below the first."""
    lines = text.split("\n")[2:]
    shown = []
    for line in lines:
        if not line.startswith("    "):
            break
        shown.append(line.strip())
    return "\n".join(shown)


def _section(text: str, title: str) -> str:
    """What follows a title up to the next empty line."""
    found = re.search(rf"^{title} ?(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


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
