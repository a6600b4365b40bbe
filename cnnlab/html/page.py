"""Blocks as one HTML page: no script, nothing loaded from elsewhere, light or dark as the reader's
system is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

from cnnlab.html.blocks import (
    Block,
    Code,
    Folded,
    Grid,
    Legend,
    Panels,
    Picture,
    Section,
    Table,
    Tabled,
    Terms,
    Text,
)
from cnnlab.html.style import STYLE
from cnnlab.html.svg import swatch


def page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    kinds: Mapping[str, str] | None = None,
    contents: bool = False,
) -> str:
    """Build the HTML text of a page.

    Args:
      title: its heading.
      lead: the paragraph below that.
      sections: of the page.
      kinds: word in a table -> class of its style; it stands out where it is the last of its row's
        words.
      contents: links to the sections come first.
    """
    links = "".join(
        f'<li><a href="#s{place}">{escape(part.title)}</a></li>'
        for place, part in enumerate(sections)
    )
    parts = [
        f'<!doctype html><html lang="en"><head><meta '
        f'charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><style>{STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(lead)}</p>",
        f"<ol>{links}</ol>" if contents else "",
        *[
            _section(section, f' id="s{place}"' if contents else "", kinds or {})
            for place, section in enumerate(sections)
        ],
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _section(section: Section, anchor: str, kinds: Mapping[str, str]) -> str:
    blocks = [_block(block, kinds) for block in section.blocks]
    return "\n".join([f"<h2{anchor}>{escape(section.title)}</h2>", *blocks])


def _block(block: Block, kinds: Mapping[str, str]) -> str:
    match block:
        case Text(text, alarm=True):
            return f'<p class="alarm">{_prose(text)}</p>'
        case Text(text, dim=dim):
            return f"<p{_class('dim' if dim else '')}>{_prose(text)}</p>"
        case Terms(items):
            pairs = "".join(
                f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in items
            )
            return f"<dl>{pairs}</dl>"
        case Tabled(table, folded):
            return _folded(_table(table, kinds), folded, False)
        case Code(text, folded):
            return _folded(f"<pre>{escape(text)}</pre>", folded, False)
        case Folded(title, note, anchor, blocks, unfolded):
            dim = f'<span class="dim"> {escape(note)}</span>' if note else ""
            inner = "\n".join(_block(inside, kinds) for inside in blocks)
            return (
                f'<details id="{escape(anchor)}"{" open" if unfolded else ""}>'
                f"<summary><b>{escape(title)}</b>{dim}</summary>\n{inner}</details>"
            )
        case _:
            return _figure(block)


def _figure(block: Legend | Panels | Grid | Picture) -> str:
    match block:
        case Legend(names):
            items = "".join(
                f"<li>{swatch(j)}<span>{escape(name)}</span></li>" for j, name in enumerate(names)
            )
            return f'<ul class="legend">{items}</ul>'
        case Panels(folded=folded, unfolded=unfolded):
            return _folded(_panels(block), folded, unfolded)
        case Grid():
            return _grid(block)
        case Picture(png, description):
            data = base64.b64encode(png).decode()
            return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def _panels(panels: Panels) -> str:
    drawn = [
        f'<figure style="width: {panel.width}px"><figcaption>{escape(panel.caption)}</figcaption>'
        f"{panel.svg}</figure>\n"
        for panel in panels.draw()
    ]
    if panels.pairs:
        drawn = [
            f'<div class="panels">{drawn[i]}{drawn[i + 1]}</div>' for i in range(0, len(drawn), 2)
        ]
    return f'<div class="panels">{"".join(drawn)}</div>'


def _grid(grid: Grid) -> str:
    def first(place: int) -> str:
        return "first" if place == grid.line else ""

    head = "".join(
        f'<th{_class(first(j))} title="{escape(meaning)}"><span>{escape(name)}</span></th>'
        for j, (name, meaning) in enumerate(grid.head)
    )
    rows = []
    for name, anchor, marks in grid.rows:
        cells = "".join(
            f"<td{_class(f'{mark.kind} {first(j)}'.strip())} "
            f'title="{escape(mark.title)}">{escape(mark.text)}</td>'
            for j, mark in enumerate(marks)
        )
        rows.append(f'<tr><th><a href="#{escape(anchor)}">{escape(name)}</a></th>{cells}</tr>\n')
    return (
        f'<div class="wide"><table class="grid"><thead><tr><th>{escape(grid.corner)}</th>{head}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _prose(text: str) -> str:
    """Escape a sentence, and mark up its flags so that they are not broken over lines."""
    return re.sub(r"(?<![\w-])--[a-z][\w-]*", r"<code>\g<0></code>", escape(text))


def _folded(inner: str, summary: str, unfolded: bool) -> str:
    if not summary:
        return inner
    state = " open" if unfolded else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{inner}</details>"


def _table(table: Table, kinds: Mapping[str, str]) -> str:
    """Build a table; the conditions, if it has them, become headings between its rows."""
    first = int(table.head[0] == "condition")
    shown = range(first, len(table.head))
    head = "".join(
        f"<th{_class('word' if j < table.words else '')}>{escape(table.head[j])}</th>"
        for j in shown
    )
    rows = []
    group = ""
    for row in table.rows:
        if first and row[0] not in ("", group):
            group = row[0]
            rows.append(
                f'<tr class="group"><th '
                f'colspan="{len(shown)}"><span>{escape(group)}</span></th></tr>\n'
            )
        rows.append(f"<tr>{''.join(_cell(table, j, row[j], kinds) for j in shown)}</tr>\n")
    body = "".join(rows)
    markup = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{markup}</div>'


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _cell(table: Table, place: int, text: str, kinds: Mapping[str, str]) -> str:
    if place >= table.words:
        return f"<td>{escape(text)}</td>"
    verdict = f" verdict {kinds[text]}" if text in kinds and place == table.words - 1 else ""
    # Where a loss's name may be broken.
    broken = re.sub(r",(?=.)", ",<wbr>", escape(text))
    return f'<td class="word{verdict}">{broken}</td>'
