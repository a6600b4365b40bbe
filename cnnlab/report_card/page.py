"""Cards as a page."""

from __future__ import annotations

from collections.abc import Sequence

from cnnlab.html.blocks import (
    Block,
    Code,
    Folded,
    Grid,
    Mark,
    Picture,
    Section,
    Table,
    Tabled,
    Terms,
    Text,
)
from cnnlab.html.page import page as write_page
from cnnlab.report_card import PROPERTIES, Card
from cnnlab.report_card.finding import NOT_APPLICABLE, NOT_REFUTED, PROVED, REFUTED, Finding

MARKS = {PROVED: "✓✓", NOT_REFUTED: "✓", REFUTED: "✗", NOT_APPLICABLE: "–"}
KINDS = {PROVED: "proved", NOT_REFUTED: "open", REFUTED: "refuted", NOT_APPLICABLE: "none"}
OPEN_UP_TO = 4  # losses whose details are unfolded from the start
IMPLEMENTATION = "finite"  # the first of the properties of a loss's code


def page(cards: Sequence[Card], picture: bytes = b"", title: str = "Report card of losses") -> str:
    """Build one HTML page of cards.

    Args:
      cards: at least one.
      picture: PNG of the curves, which is put into the page.
      title: its heading.

    Returns:
      The page's text.
    """
    names = [name for name in PROPERTIES if any(name in card.findings for card in cards)]
    lead = (
        f"{len(cards)} losses, examined numerically with K = {cards[0].num_classes} classes. "
        f"{MARKS[PROVED]} proved (cited, and not refuted), {MARKS[NOT_REFUTED]} not refuted, "
        f"{MARKS[REFUTED]} refuted by a counterexample, {MARKS[NOT_APPLICABLE]} not applicable. A "
        "property is no virtue in itself: a symmetric loss, which wrong labels mislead less, "
        "cannot be convex and never negative. p = softmax(z), and L(z, k) is the loss of class k "
        "at the logits z."
    )
    properties = [
        (name, f"{PROPERTIES[name].meaning} ({PROPERTIES[name].source})") for name in names
    ]
    sections = [Section("Overview", [*_broken_claims(cards), _overview(cards, names)])]
    if picture:
        text = "Loss and length of its gradient against the true class"
        sections.append(Section("Loss and gradient", [Picture(picture, text)]))
    details: list[Block] = [_details(card, len(cards) <= OPEN_UP_TO) for card in cards]
    sections += [Section("The losses", details), Section("The properties", [Terms(properties)])]
    return write_page(title, lead, sections, {_verdict(kind): KINDS[kind] for kind in KINDS})


def _broken_claims(cards: Sequence[Card]) -> list[Block]:
    return [
        Text(
            f"Claimed and refuted: {card.name} claims {finding.property}: {finding.detail}",
            alarm=True,
        )
        for card in cards
        for finding in card.broken_claims
    ]


def _overview(cards: Sequence[Card], names: Sequence[str]) -> Grid:
    head = [(name.replace("_", " "), PROPERTIES[name].meaning) for name in names]
    rows = [
        (card.name, _anchor(card), [_mark(card.findings.get(name)) for name in names])
        for card in cards
    ]
    line = names.index(IMPLEMENTATION) if IMPLEMENTATION in names else None
    return Grid("loss", head, rows, line)


def _mark(finding: Finding | None) -> Mark:
    if finding is None:
        return Mark()
    kind = KINDS[finding.verdict]
    if finding.claimed and finding.verdict == REFUTED:
        kind += " claim"
    return Mark(MARKS[finding.verdict], kind, finding.detail)


def _details(card: Card, unfolded: bool) -> Folded:
    refuted = [n.replace("_", " ") for n, f in card.findings.items() if f.verdict == REFUTED]
    blocks: list[Block] = [Text(card.about.summary)]
    if card.about.formula:
        blocks.append(Code(card.about.formula))
    if card.hyperparameters:
        values = ", ".join(f"{k} = {v}" for k, v in card.hyperparameters.items())
        blocks.append(Text(f"Hyperparameters: {values}", dim=True))
    if card.cosines:
        blocks.append(Text("Its logits are cosines, drawn from [-0.95, 0.95].", dim=True))
    if card.about.source:
        blocks.append(Text(f"Source: {card.about.source}", dim=True))
    rows = [
        (name.replace("_", " "), _detail(finding), _verdict(finding.verdict))
        for name, finding in card.findings.items()
    ]
    blocks.append(Tabled(Table(("property", "finding", "verdict"), rows, words=3)))
    note = f"— not {', '.join(refuted)}" if refuted else ""
    return Folded(card.name, note, _anchor(card), blocks, unfolded)


def _detail(finding: Finding) -> str:
    text = finding.detail
    if finding.points:
        text += f" ({finding.points} points)"
    if finding.citation:
        text += f" {finding.citation}"
    return f"claimed: {text}" if finding.claimed else text


def _verdict(verdict: str) -> str:
    return f"{MARKS[verdict]} {verdict}"


def _anchor(card: Card) -> str:
    return "".join(c if c.isalnum() else "-" for c in card.name)
