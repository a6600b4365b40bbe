"""A lesson: claims that a script computes and checks, with the tables and figures that show them,
as one page.

A lesson is a script: its docstring is the text, and a generator of parts the work, which is printed
as it comes:

    def teach(flags: Lesson) -> Iterable[Part]:
        x = np.linspace(-4, 4, 100)
        p = softmax(np.stack([x, 1 - x], -1))
        off = np.abs(p.sum(-1) - 1).max()
        yield Claim("The probabilities sum to one", off < 1e-6, "100 inputs")
        curves = {"of x": p[:, 0], "of 1 - x": p[:, 1]}
        yield lines("Softmax of two lines", x, curves, "input x", "probability")

    if __name__ == "__main__":
        run(teach)
"""

from __future__ import annotations

import inspect
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from cnnlab import cli, files
from cnnlab.config import Settings, check
from cnnlab.console import Console
from cnnlab.errors import InputError
from cnnlab.html.blocks import Block, Code, Panel, Panels, Section, Table, Tabled, Terms, Text
from cnnlab.html.page import page as write_page
from cnnlab.html.svg import INK, Look, draw, look, plain_log
from cnnlab.plots import in_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True)
class Lesson(Settings):
    """The flags of a lesson; one with more inherits from it."""

    workdir: str = "runs/lessons"
    """Folder for NAME.html, to look at, and NAME.json, for all.py."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Claim:
    """A statement, whether it held when it was computed, and the numbers that say so."""

    statement: str
    holds: Any  # a truth value, NumPy's and JAX's too
    measured: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", bool(self.holds))


Part = Claim | Table | Panel | Text
KINDS = {kind.__name__: kind for kind in (Claim, Table, Panel, Text)}
Flags = TypeVar("Flags", bound=Lesson)


@dataclass(frozen=True)
class Taught:
    """What a lesson has come to.

    Attributes:
      name: of the script.
      title, text: first line and the rest of its docstring.
      parts: in the order in which they came.
      source: of the script.
      seconds: it took.
    """

    name: str
    title: str
    text: str
    parts: list[Part]
    source: str
    seconds: float

    @property
    def refuted(self) -> list[Claim]:
        """The claims that did not hold."""
        return [part for part in self.parts if isinstance(part, Claim) and not part.holds]


def figure(
    caption: str,
    paint: Callable[[Axes], object],
    width: int = 340,
    height: int = 250,
    **margins: float,
) -> Panel:
    """Draw a figure; consecutive ones appear side by side.

    Args:
      caption: above it.
      paint: draws on the matplotlib axes that it is given, and names their units.
      width, height: in CSS pixels.
      margins: left, right, top, bottom of the axes, in pixels, where not as usual.
    """
    return Panel(caption, draw(paint, caption, width, height, **margins))


def lines(
    caption: str,
    x: ArrayLike,
    series: Mapping[str, ArrayLike],
    xlabel: str,
    ylabel: str,
    markers: bool = False,
    **axes: object,
) -> Panel:
    """Draw a figure of lines over one axis; they differ without their colour too.

    Args:
      caption: above it.
      x: float[N].
      series: name in the legend -> float[N]; a single one has no legend.
      xlabel, ylabel: with units.
      markers: at the points.
      axes: what `Axes.set` takes besides them: xscale, ylim, ...
    """

    def paint(axis: Axes) -> None:
        for place, (name, y) in enumerate(series.items()):
            style = cast(Look, look(place) | ({} if markers else {"marker": ""}))
            axis.plot(x, y, **style, markersize=4, label=in_legend(name))
        axis.grid(color=INK, alpha=0.15)
        axis.set(xlabel=xlabel, ylabel=ylabel, **axes)
        for dimension in (axis.xaxis, axis.yaxis):
            if dimension.get_scale() == "log":
                plain_log(dimension)
        if axis.get_xscale() == "linear" and np.issubdtype(np.asarray(x).dtype, np.integer):
            ticks = cast("MaxNLocator", axis.xaxis.get_major_locator())
            ticks.set_params(integer=True)  # steps and epochs have no halves
        if len(series) > 1:
            axis.legend(frameon=False, fontsize=10)

    return figure(caption, paint)


def picture(caption: str, image: np.ndarray, limit: float | None = None, side: int = 96) -> Panel:
    """Draw an image without axes, its pixels as squares.

    Args:
      caption: above it.
      image: float[H, W, 3] in [0, 1]; or float[H, W], from -limit (purple) over 0 (white) to limit
        (orange), without a limit from 0 (black) to its largest value (white).
      limit: of the colours.
      side: its height in CSS pixels.
    """
    height, width = image.shape[:2]
    colours: Any = (
        {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit} if limit else {"cmap": "gray", "vmin": 0}
    )

    def paint(axis: Axes) -> None:
        axis.imshow(image, interpolation="nearest", **colours)
        axis.set_axis_off()

    return figure(
        caption, paint, round(side * width / height), side, left=1, right=1, top=1, bottom=1
    )


def run(
    teach: Callable[[Flags], Iterable[Part]],
    flags: type[Flags] = Lesson,
    args: list[str] | None = None,
) -> None:
    """Parse the flags, teach, print each part as it comes, and write the lesson's page.

    Args:
      teach: flags -> parts.
      flags: their dataclass.
      args: of the command line; None: those of this process.

    Raises:
      SystemExit: 0; 1 if a claim does not hold; `cli`'s statuses else.
    """
    cli.main(lambda parsed: _run(teach, parsed), flags, args)


def _run(teach: Callable[[Flags], Iterable[Part]], flags: Flags) -> None:
    script = Path(inspect.getfile(teach))
    title, _, text = (inspect.getdoc(inspect.getmodule(teach)) or script.stem).partition("\n")
    folder = made(flags.workdir)
    from cnnlab import backend, compilation_cache

    compilation_cache.keep_compilations()
    backend.start()
    console = Console("off")
    parts = []
    started = time.monotonic()
    for part in teach(flags):
        parts.append(part)
        if line := _line(part):
            console.say(*line.split("\n"))
    source = script.read_text(encoding="utf-8")
    taught = Taught(script.stem, title, text.strip(), parts, source, time.monotonic() - started)
    stored = asdict(taught) | {
        "parts": [{"kind": type(part).__name__, **asdict(part)} for part in parts]
    }
    files.write_text(folder / f"{taught.name}.html", page([taught], f"Lesson {taught.name}"))
    # Last: where it stands the lesson was taught
    files.write_json(folder / f"{taught.name}.json", stored)
    console.say(f"{folder / taught.name}.html")
    if taught.refuted:
        raise cli.Stopped("", 1)


def made(workdir: str) -> Path:
    """Make a folder if it is not there, and check that it can be written to.

    Raises:
      InputError: it cannot be made or written to.
    """
    if not workdir:
        raise InputError("--workdir must name a folder")
    folder = files.expanded(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir {folder} cannot be made: {error.strerror}") from error
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"--workdir {folder} cannot be written to: {error.strerror}") from error
    return folder


def read(path: Path) -> Taught:
    """Read what a lesson has stored in NAME.json.

    Raises:
      InputError: the file holds no lesson.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        parts = [KINDS[part.pop("kind")](**part) for part in stored.pop("parts")]
        return Taught(parts=parts, **stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no lesson: {error}") from error


def page(lessons: Sequence[Taught], title: str, failed: Sequence[str] = ()) -> str:
    """Build one HTML page of lessons, with the names of those that failed."""
    claims = [part for lesson in lessons for part in lesson.parts if isinstance(part, Claim)]
    held = sum(claim.holds for claim in claims)
    lead = f"{held} of {len(claims)} claims hold, as they were computed for this page."
    if failed:
        lead += f" Without a result: {', '.join(failed)}."
    sections = [Section(lesson.title, _blocks(lesson)) for lesson in lessons]
    return write_page(title, lead, sections, contents=len(lessons) > 1)


def _blocks(lesson: Taught) -> list[Block]:
    """Arrange a lesson below its heading: failed claims, text, parts in order, and the script.

    Consecutive parts of the same kind stay together.
    """
    blocks: list[Block] = [
        Text(f"Does not hold: {c.statement}. {c.measured}", alarm=True) for c in lesson.refuted
    ]
    paragraphs = [
        part for part in lesson.text.split("\n\n") if part and not part.startswith("    ")
    ]
    blocks += [Text(" ".join(paragraph.split())) for paragraph in paragraphs]
    for kind, group in itertools.groupby(lesson.parts, type):
        parts: list[Any] = list(group)
        if kind is Claim:
            blocks.append(
                Terms(
                    [
                        (f"{'✓' if part.holds else '✗'} {part.statement}", part.measured)
                        for part in parts
                    ]
                )
            )
        elif kind is Panel:
            blocks.append(Panels(parts.copy))
        else:
            blocks += [Tabled(part) if kind is Table else part for part in parts]
    return [*blocks, Code(lesson.source, f"{lesson.name}.py, {lesson.seconds:.0f} s")]


def _line(part: Part) -> str:
    """Format a part for the terminal; figures, which are for the page, give no text."""
    match part:
        case Claim(statement, holds, measured):
            return f"{'HOLDS' if holds else 'DOES NOT HOLD'}: {statement}\n    {measured}"
        case Table(head, rows):
            widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

            def pad(row):
                return "  ".join(
                    cell.ljust(width) if place < part.words else cell.rjust(width)
                    for place, (cell, width) in enumerate(zip(row, widths, strict=True))
                )

            return "\n".join(f"    {pad(row).rstrip()}" for row in (head, *rows))
        case Text(text):
            return text
    return ""
