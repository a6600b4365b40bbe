"""Cards as one HTML page: no script, nothing loaded from elsewhere, light or dark as the reader's
system is.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from cnnlab.report_card import PROPERTIES, Card
from cnnlab.report_card.finding import NOT_APPLICABLE, NOT_REFUTED, PROVED, REFUTED, Finding

MARKS = {PROVED: "✓✓", NOT_REFUTED: "✓", REFUTED: "✗", NOT_APPLICABLE: "–"}
KINDS = {PROVED: "proved", NOT_REFUTED: "open", REFUTED: "refuted", NOT_APPLICABLE: "none"}
OPEN_UP_TO = 4  # losses whose details are unfolded from the start

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --dim: #656d76; --paper: #fff; --line: #d7dce1;
  --box: #f5f7f9;
  --good: #1a7f4b; --bad: #b42318; --bad-box: #fdecea; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --dim: #98a1aa; --paper: #15181c;
  --line: #363c43;
  --box: #1e2227; --good: #5ccf92; --bad: #ff8f85; --bad-box: #3a1d1b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto;
  max-width: 1240px; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
a { color: inherit; } .dim { color: var(--dim); }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { text-align: left; padding: .28rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
.grid td, .grid thead th { text-align: center; padding: .28rem .35rem; white-space: nowrap; }
.grid thead th { vertical-align: bottom; font-weight: 500; font-size: .85rem; }
.grid thead th:not(:first-child) span { writing-mode: vertical-rl; transform: rotate(180deg); }
.grid th:first-child { text-align: left; font-weight: 500; position: sticky; left: 0;
  background: var(--paper); }
.grid tbody tr:hover td, .grid tbody tr:hover th { background: var(--box); }
.first { border-left: 2px solid var(--line); }
.proved, .open { color: var(--good); } .proved { font-weight: 700; } .refuted { color: var(--bad);
  font-weight: 600; }
.none { color: var(--dim); } .claim { outline: 2px solid var(--bad); outline-offset: -2px;
  background: var(--bad-box); }
.alarm { border: 2px solid var(--bad); background: var(--bad-box); border-radius: 6px;
  padding: .6rem 1rem;
  margin: 1rem 0; }
.alarm p { margin: .2rem 0; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; padding: .5rem .9rem;
  }
summary { cursor: pointer; } summary b { font-size: 1.05rem; }
pre { background: var(--box); padding: .6rem .8rem; border-radius: 6px; overflow-x: auto;
  font-size: .9rem; }
details td { font-size: .92rem; } details td:nth-child(2) { white-space: nowrap; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
"""


def page(cards: Sequence[Card], picture: bytes = b"", title: str = "Report card of losses") -> str:
    """One HTML page.

    Args:
      cards: at least one.
      picture: PNG of the curves, which is put into the page.
      title: its heading.

    Returns:
      The page's text.
    """
    names = [name for name in PROPERTIES if any(name in card.findings for card in cards)]
    image = base64.b64encode(picture).decode()
    parts = [
        f'<!doctype html><html lang="en"><head><meta '
        f'charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><style>{STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{len(cards)} losses, examined numerically with K = {cards[0].num_classes} '
        "classes. "
        f'<span class="proved">{MARKS[PROVED]} proved</span> (cited, and not refuted), '
        f'<span class="open">{MARKS[NOT_REFUTED]} not refuted</span>, '
        f'<span class="refuted">{MARKS[REFUTED]} refuted</span> by a counterexample, '
        f"{MARKS[NOT_APPLICABLE]} not applicable. A property is no virtue in itself: a symmetric "
        "loss, which wrong labels mislead less, cannot be convex and never negative. p = "
        "softmax(z), and L(z, k) is the loss of class k at the logits z.</p>",
        _alarm(cards),
        _grid(cards, names),
        f'<h2>Loss and gradient</h2><img alt="Loss and length of its gradient against the true '
        'class" '
        f'src="data:image/png;base64,{image}">'
        if picture
        else "",
        "<h2>The losses</h2>",
        *[_section(card, len(cards) <= OPEN_UP_TO) for card in cards],
        "<h2>The properties</h2><table><tbody>",
        *[
            f"<tr><td>{name}</td><td>{escape(PROPERTIES[name].meaning)}</td>"
            f'<td class="dim">{escape(PROPERTIES[name].source)}</td></tr>'
            for name in names
        ],
        "</tbody></table></body></html>\n",
    ]
    return "\n".join(parts)


def _alarm(cards: Sequence[Card]) -> str:
    broken = [(card.name, f) for card in cards for f in card.broken_claims]
    if not broken:
        return ""
    lines = [
        f"<p><b>{escape(name)}</b> claims {f.property}: {escape(f.detail)}</p>"
        for name, f in broken
    ]
    return f'<div class="alarm"><p class="refuted">Claimed and refuted</p>{"".join(lines)}</div>'


def _grid(cards: Sequence[Card], names: Sequence[str]) -> str:
    # The first column of the implementation's properties has a line before it.
    border = {name: ' class="first"' if name == "finite" else "" for name in names}
    head = "".join(
        f"<th{border[n]} "
        f'title="{escape(PROPERTIES[n].meaning)}"><span>{n.replace("_", " ")}</span></th>'
        for n in names
    )
    rows = []
    for card in cards:
        cells = "".join(_cell(card.findings.get(name), name == "finite") for name in names)
        rows.append(f'<tr><th><a href="#{_anchor(card)}">{escape(card.name)}</a></th>{cells}</tr>')
    return (
        f'<div class="wide"><table class="grid"><thead><tr><th>loss</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(finding: Finding | None, first: bool) -> str:
    if finding is None:
        return f"<td{' class=first' * first}></td>"
    broken = finding.claimed and finding.verdict == REFUTED
    kinds = f"{KINDS[finding.verdict]}{' claim' * broken}{' first' * first}"
    return f'<td class="{kinds}" title="{escape(finding.detail)}">{MARKS[finding.verdict]}</td>'


def _section(card: Card, unfolded: bool) -> str:
    refuted = [n.replace("_", " ") for n, f in card.findings.items() if f.verdict == REFUTED]
    not_all = f'<span class="dim"> — not {escape(", ".join(refuted))}</span>' if refuted else ""
    facts = []
    if card.hyperparameters:
        facts.append(
            "Hyperparameters: " + ", ".join(f"{k} = {v}" for k, v in card.hyperparameters.items())
        )
    if card.cosines:
        facts.append("Its logits are cosines, drawn from [-0.95, 0.95].")
    if card.about.source:
        facts.append(f"Source: {card.about.source}")
    rows = "".join(
        f'<tr><td class="{KINDS[f.verdict]}">{MARKS[f.verdict]}</td><td>{name.replace("_", " ")}'
        f"{' (claimed)' * f.claimed}</td><td>{escape(f.detail)}"
        f'<span class="dim">{f" ({f.points} points)" * bool(f.points)}'
        f"{escape(f' {f.citation}') * bool(f.citation)}</span></td></tr>"
        for name, f in card.findings.items()
    )
    lines = "<br>".join(escape(fact) for fact in facts)
    formula = f"<pre>{escape(card.about.formula)}</pre>" if card.about.formula else ""
    return (
        f'<details id="{_anchor(card)}"{" open" * unfolded}>'
        f"<summary><b>{escape(card.name)}</b>{not_all}</summary>"
        f"<p>{escape(card.about.summary)}</p>{formula}"
        f'<p class="dim">{lines}</p><table><tbody>{rows}</tbody></table></details>'
    )


def _anchor(card: Card) -> str:
    return escape("".join(c if c.isalnum() else "-" for c in card.name))
