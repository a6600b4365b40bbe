"""What a page is made of: sections of blocks, which page.py and markdown.py write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first `words` columns are words, the others numbers."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int = 2


@dataclass(frozen=True)
class Panel:
    """A figure and what stands above it."""

    caption: str
    svg: str

    @property
    def width(self) -> int:
        """In CSS pixels."""
        return int(self.svg.partition(' width="')[2].partition('"')[0])


@dataclass(frozen=True)
class Text:
    """A paragraph; an alarm stands in a box."""

    text: str
    alarm: bool = False
    dim: bool = False


@dataclass(frozen=True)
class Terms:
    """Words and what they mean."""

    items: list[tuple[str, str]]


@dataclass(frozen=True)
class Tabled:
    """A table; folded under a line if `folded` says one."""

    table: Table
    folded: str = ""


@dataclass(frozen=True)
class Legend:
    """Which series has which colour, marker and dashes."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Panels:
    """Figures side by side, drawn when they are asked for; under a line that folds them if `folded`
    says one.

    `pairs`: the first and second, the third and fourth, ... stay together.
    """

    draw: Callable[[], list[Panel]]
    folded: str = ""
    unfolded: bool = True
    pairs: bool = False


@dataclass(frozen=True)
class Code:
    """Text as it is; folded under a line if `folded` says one."""

    text: str
    folded: str = ""


@dataclass(frozen=True)
class Mark:
    """A cell of a grid.

    Attributes:
      text: of one or two characters.
      kind: class of its style.
      title: shown where the pointer rests on it.
    """

    text: str = ""
    kind: str = ""
    title: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of marks.

    Attributes:
      corner: heading of the first column.
      head: heading of each other column, and what it means.
      rows: name, the anchor that it leads to, and the marks of each row.
      line: the column, from 0, that has a line before it.
    """

    corner: str
    head: list[tuple[str, str]]
    rows: list[tuple[str, str, list[Mark]]]
    line: int | None = None


@dataclass(frozen=True)
class Picture:
    """A PNG, with its description."""

    png: bytes
    description: str


@dataclass(frozen=True)
class Folded:
    """Blocks under a line.

    Attributes:
      title, note: of the line.
      anchor: of links to it.
      blocks: below it.
      unfolded: whether they are shown from the start.
    """

    title: str
    note: str
    anchor: str
    blocks: list[Block]
    unfolded: bool = False


Block: TypeAlias = "Text | Terms | Tabled | Legend | Panels | Code | Grid | Picture | Folded"


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: list[Block]
