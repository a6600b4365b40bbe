"""Blocks as Markdown: the same sentences and tables as on the page; figures are left out."""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def markdown(title: str, lead: str, sections: Sequence[Section], page: str = "report.html") -> str:
    """Build the Markdown text of a document.

    Args:
      title: its heading.
      lead: the paragraph below that.
      sections: of the document.
      page: where the figures are.
    """
    parts = [f"# {escape(title)}", escape(lead)]
    for section in sections:
        blocks = [text for block in section.blocks if (text := _block(block))]
        drawn = any(isinstance(block, Panels) for block in section.blocks)
        parts += [f"## {escape(section.title)}", *blocks, *[f"(Figures: {page}.)"] * drawn]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    r"""Escape text, so that Markdown leaves it as it is.

    >>> print(escape("a|b <c> cross_entropy _x_"))
    a\|b \<c\> cross_entropy \_x\_
    """
    text = re.sub(r"[\\`*<>|~$&]", r"\\\g<0>", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    return text.replace("](", "]\\(")


def _block(block: Block) -> str:
    match block:
        case Text(text, alarm=True):
            return f"> **{escape(text)}**"
        case Text(text):
            return escape(text)
        case Terms(items):
            return "\n".join(f"- **{escape(word)}**: {escape(meaning)}" for word, meaning in items)
        case Tabled(table):
            return _table(table)
        case Legend() | Panels() | Picture() | Grid():  # not in Markdown
            return ""
        case Folded(title, note, _, blocks):
            return "\n\n".join([f"**{escape(title)}** {escape(note)}", *map(_block, blocks)])
        case Code(text, folded):
            fence = "`" * max(3, *[len(ticks) + 1 for ticks in re.findall("`+", text)], 3)
            code = f"{fence}\n{text}\n{fence}"
            return f"{folded}:\n\n{code}" if folded else code


def _table(table: Table) -> str:
    ruler = ["---" if place < table.words else "---:" for place in range(len(table.head))]
    rows = [map(escape, table.head), ruler, *[map(escape, row) for row in table.rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
