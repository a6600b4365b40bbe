"""The report as one HTML page: no script, nothing loaded from elsewhere, light or dark as the reader's system is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from cnnlab.report import claims, figures
from cnnlab.report.document import Block, Code, Legend, Panels, Section, Tabled, Terms, Text
from cnnlab.report.style import STYLE
from cnnlab.report.tables import MARKS, Table
from cnnlab.study.results import Results

KINDS = {mark: word for word, mark in MARKS.items()}


def page(results: Results, sections: Sequence[Section]) -> str:
    """The page's text.

    Args:
      results: of the study.
      sections: of the report (`document.sections`).
    """
    title = escape(claims.title(results))
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>',
        f"<h1>{title}</h1>",
        f"<p>{escape(claims.compared(results))}</p>",
        *[_section(section) for section in sections],
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _section(section: Section) -> str:
    return "\n".join([f"<h2>{escape(section.title)}</h2>", *map(_block, section.blocks)])


def _block(block: Block) -> str:
    match block:
        case Text(text, alarm=True):
            return f'<p class="alarm">{_prose(text)}</p>'
        case Text(text, dim=dim):
            return f"<p{_class('dim' * dim)}>{_prose(text)}</p>"
        case Terms(items):
            pairs = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in items)
            return f"<dl>{pairs}</dl>"
        case Tabled(table, folded):
            return _folded(_table(table), folded, False)
        case Legend(losses):
            items = "".join(f"<li>{figures.swatch(j)}<span>{escape(loss)}</span></li>" for j, loss in enumerate(losses))
            return f'<ul class="legend">{items}</ul>'
        case Panels(draw, folded, unfolded, pairs):
            drawn = [
                f'<figure style="width: {panel.width}px"><figcaption>{escape(panel.caption)}</figcaption>'
                f"{panel.svg}</figure>\n"
                for panel in draw()
            ]
            if pairs:
                drawn = [f'<div class="panels">{drawn[i]}{drawn[i + 1]}</div>' for i in range(0, len(drawn), 2)]
            return _folded(f'<div class="panels">{"".join(drawn)}</div>', folded, unfolded)
        case Code(text, folded):
            return _folded(f"<pre>{escape(text)}</pre>", folded, False)


def _prose(text: str) -> str:
    """A sentence in which flags are not broken over lines."""
    return re.sub(r"(?<![\w-])--[a-z][\w-]*", r"<code>\g<0></code>", escape(text))


def _folded(inner: str, summary: str, unfolded: bool) -> str:
    if not summary:
        return inner
    return f"<details{' open' * unfolded}><summary>{escape(summary)}</summary>{inner}</details>"


def _table(table: Table) -> str:
    """A table; the conditions, if it has them, as headings between its rows."""
    first = int(table.head[0] == "condition")
    shown = range(first, len(table.head))
    head = "".join(f"<th{_class('word' * (j < table.words))}>{escape(table.head[j])}</th>" for j in shown)
    rows, group = [], ""
    for row in table.rows:
        if first and row[0] not in ("", group):
            group = row[0]
            rows.append(f'<tr class="group"><th colspan="{len(shown)}"><span>{escape(group)}</span></th></tr>\n')
        rows.append(f"<tr>{''.join(_cell(table, j, row[j]) for j in shown)}</tr>\n")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _cell(table: Table, place: int, text: str) -> str:
    if place >= table.words:
        return f"<td>{escape(text)}</td>"
    verdict = f" verdict {KINDS[text]}" if text in KINDS and place == table.words - 1 else ""
    broken = re.sub(r",(?=.)", ",<wbr>", escape(text))  # where a loss may go on in the next line
    return f'<td class="word{verdict}">{broken}</td>'
