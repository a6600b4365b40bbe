"""What a docstring says of its loss: formula, source, and a line `Claims: strictly_proper, same as squentropy`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cnnlab.errors import InputError, unknown


class About(NamedTuple):
    """What a docstring says: its first line, the formula, where the loss comes from, what it claims."""

    summary: str = ""
    formula: str = ""
    source: str = ""
    claims: tuple[str, ...] = ()


def about(function: Callable) -> About:
    """Read a docstring in cnnlab's form; what it lacks stays empty.

    >>> about(lambda z, y: z)
    About(summary='', formula='', source='', claims=())
    """
    text = inspect.getdoc(function) if inspect.isroutine(function) else None
    if not text:
        return About()
    blocks = re.split(r"\n\s*\n", text)
    formula = next((b for b in blocks[1:] if all(line.startswith("    ") for line in b.splitlines())), "")
    named = {name: _paragraph(blocks, name) for name in ("Source", "Claims")}
    return About(" ".join(blocks[0].split()), textwrap.dedent(formula), named["Source"], split(named["Claims"]))


def _paragraph(blocks: list[str], name: str) -> str:
    """What follows `name:` at the start of a line, to the end of its paragraph or to the next such line."""
    for block in blocks:
        found = re.search(rf"^{name}:(.*?)(?=^[A-Z][a-z]+:|\Z)", block, re.MULTILINE | re.DOTALL)
        if found:
            return " ".join(found.group(1).split())
    return ""


def split(text: str) -> tuple[str, ...]:
    """The claims in a comma-separated list.

    >>> split("strictly proper, same as focal,")
    ('strictly proper', 'same as focal')
    """
    return tuple(part for part in (" ".join(p.split()) for p in text.rstrip(".").split(",")) if part)


def resolve(claims: Iterable[str], properties: Iterable[str]) -> dict[str, str]:
    """Each claimed property with what it is compared to: {"strictly_proper": "", "same_as": "squentropy"}.

    Args:
      claims: as written: `strictly_proper`, `strictly proper`, `same as squentropy`, `same as focal gamma=1`.
      properties: the names that there are.

    Raises:
      InputError: a claim that is no property.
    """
    known, found = list(properties), {}
    for claim in claims:
        same = re.fullmatch(r"same[ _]as[ _](.+)", claim)
        if same:
            found["same_as"] = ",".join(same.group(1).split())
            continue
        name = re.sub(r"[ -]+", "_", claim.strip().lower())
        if name == "same_as":
            raise InputError("the claim 'same as' names a loss, as in 'same as squentropy'")
        if name not in known:
            raise unknown("claimed property", claim, [*known, "same as LOSS"])
        found[name] = ""
    return found
