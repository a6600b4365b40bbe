"""What a docstring claims of its loss, in a line `Claims: strictly_proper, same as squentropy`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from cnnlab.docstrings import section
from cnnlab.errors import InputError, unknown


def claimed(function: Callable) -> tuple[str, ...]:
    """Find the claims in a docstring.

    >>> claimed(lambda z, y: z)
    ()
    """
    return split(section(function, "Claims"))


def split(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of claims.

    >>> split("strictly proper, same as focal,")
    ('strictly proper', 'same as focal')
    """
    return tuple(
        part for part in (" ".join(p.split()) for p in text.rstrip(".").split(",")) if part
    )


def resolve(claims: Iterable[str], properties: Iterable[str]) -> dict[str, str]:
    """Return the claimed properties, each with what it is compared to.

    For example: {"strictly_proper": "", "same_as": "squentropy"}.

    Args:
      claims: as written: `strictly_proper`, `strictly proper`, `same as squentropy`, `same as focal
        gamma=1`.
      properties: the names that there are.

    Raises:
      InputError: a claim that is no property.
    """
    known = list(properties)
    resolved = {}
    for claim in claims:
        same = re.fullmatch(r"same[ _]as[ _](.+)", claim)
        if same:
            resolved["same_as"] = ",".join(same.group(1).split())
            continue
        name = re.sub(r"[ -]+", "_", claim.strip().lower())
        if name == "same_as":
            raise InputError("the claim 'same as' names a loss, as in 'same as squentropy'")
        if name not in known:
            raise unknown("claimed property", claim, [*known, "same as LOSS"])
        resolved[name] = ""
    return resolved
