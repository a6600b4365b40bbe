"""Cards as text: a table of verdicts that stays whole where no terminal is, and a line for every
finding.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cnnlab import losses
from cnnlab.docstrings import entry
from cnnlab.report_card import MATHEMATICAL, PROPERTIES, Card, Property
from cnnlab.report_card.finding import NOT_APPLICABLE, NOT_REFUTED, PROVED, REFUTED

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

MARKS = {PROVED: "proof", NOT_REFUTED: "ok", REFUTED: "NO", NOT_APPLICABLE: "-"}
HOLDS = (PROVED, NOT_REFUTED)
STYLES = {PROVED: "bold green", NOT_REFUTED: "green", REFUTED: "red", NOT_APPLICABLE: "dim"}
LEGEND = (
    "proof: cited and not refuted; ok: not refuted; NO: refuted; -: not applicable; NO!: claimed "
    "and refuted"
)


def tables(cards: Sequence[Card]) -> Iterator[Table]:
    """Yield two rich tables, losses by properties: mathematical ones, then the implementation's.

    A table without a finding is left out.
    """
    from rich.table import Table

    parts: list[Mapping[str, Property]] = [
        MATHEMATICAL,
        {n: p for n, p in PROPERTIES.items() if n not in MATHEMATICAL},
    ]
    for properties in parts:
        shown = [name for name in properties if any(name in card.findings for card in cards)]
        if not shown:
            continue
        table = Table(box=None, padding=(0, 1, 0, 0))
        table.add_column("loss", no_wrap=True)
        for name in shown:
            table.add_column(properties[name].short, no_wrap=True)
        for card in cards:
            table.add_row(card.name, *[_mark(card, name) for name in shown])
        yield table


def _mark(card: Card, name: str) -> Text | str:
    from rich.text import Text

    finding = card.findings.get(name)
    if finding is None:
        return ""
    broken = finding.claimed and finding.verdict == REFUTED
    mark = MARKS[finding.verdict]
    return Text(f"{mark}!" if broken else mark, STYLES[finding.verdict])


def legend() -> list[str]:
    """Explain the marks, in one line, and the columns, in one line each."""
    return [LEGEND, *[f"{p.short:<7} {name}: {p.meaning}" for name, p in PROPERTIES.items()]]


def details(card: Card, verdicts: Iterable[str] = MARKS) -> list[str]:
    """List the findings with one of the verdicts, one line each."""
    lines = []
    for name, finding in card.findings.items():
        if finding.verdict in verdicts:
            cited = f" [{finding.citation}]" if finding.citation else ""
            tried = f" ({finding.points} points)" if finding.points else ""
            lines.append(f"  {MARKS[finding.verdict]:<6}{name}: {finding.detail}{tried}{cited}")
    return lines


WORDS = {
    "strictly_proper": "proper",
    "classification_calibrated": "calibrated",
    "symmetric": "symmetric",
    "bounded": "bounded",
    "convex": "convex",
    "smooth": "smooth",
    "shift_invariant": "shift-invariant",
    "strong_on_confident_mistakes": "strong",
}


def markdown(cards: Sequence[Card]) -> list[str]:
    """Format the lines of the table in losses/README.md.

    A row has name, formula, the properties not refuted, and source.
    """
    lines = ["| loss | value | properties | source |", "|---|---|---|---|"]
    for card in cards:
        held = [
            word
            for name, word in WORDS.items()
            if name in card.findings and card[name].verdict in HOLDS
        ]
        lines.append(
            f"{markdown_start(card.loss)} {', '.join(held)} | {_reference(card.about.source)} |"
        )
    return lines


def markdown_start(loss: Callable) -> str:
    """Format a row of that table up to the properties, which need an examination."""
    about = entry(loss)
    parameters = list(inspect.signature(loss).parameters.values())[2:]
    arguments = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    value = (
        about.formula.partition(";")[0]
        .removeprefix("L(z, y) = ")
        .replace("\n", " ")
        .replace("|", "\\|")
    )
    names = " ".join(f"`{alias}`" for alias, other in losses.ALIASES.items() if other is loss)
    return f"| `{about.name}({', '.join(arguments)})` {names} | {value.rstrip(',')} |".replace(
        "  ", " "
    )


def _reference(source: str) -> str:
    """Return authors and year, linked."""
    who = re.match(r".*?\d{4}", source)
    link = re.search(r"https?://\S+[^\s.,;)]", source)
    return (
        f"[{who[0].replace(',', '')}]({link[0]})"
        if who and link
        else source.partition('"')[0].strip(" ,")
    )


def broken_claims(cards: Sequence[Card]) -> list[str]:
    """List the claims that are refuted or could not be examined, one line each."""
    return [
        f"{card.name} claims {f.property}: {f.detail}" for card in cards for f in card.broken_claims
    ]
