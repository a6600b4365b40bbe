"""matplotlib's drawings as SVG that a page can hold: the page's colours and font, no ids that
clash, nothing loaded.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, TypedDict

from cnnlab.errors import one_line
from cnnlab.plots import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.typing import LineStyleType, RcKeyType


class Look(TypedDict):
    """What `Axes.plot` takes of a series."""

    color: str
    marker: str
    linestyle: LineStyleType


INK = "#12ab9e"  # no other colour is that: in the SVG it becomes the page's text colour
MARKERS = "os^DvPX*"
DASHES: tuple[LineStyleType, ...] = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
MARGINS = {"left": 52, "right": 10, "top": 8, "bottom": 37}  # margins in pixels
STYLE: dict[RcKeyType, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cnnlab",
    "text.parse_math": False,  # a loss may be called $x$
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}


def look(place: int) -> Look:
    """Choose colour, marker and dashes of the n-th series; series differ without colour too."""
    colour = SERIES[place % len(SERIES)]
    return {
        "color": INK if colour == SERIES[-1] else colour,  # black would not be seen in the dark
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[place % len(DASHES)],
    }


def draw(
    paint: Callable[[Axes], object],
    label: str,
    width: int = 340,
    height: int = 250,
    **margins: float,
) -> str:
    """Draw a panel as an <svg> element.

    Args:
      paint: draws on the axes that it is given.
      label: says what is to be seen, for those who do not see it.
      width, height: in CSS pixels.
      margins: left, right, top, bottom of the axes, in pixels, where not as usual.

    Returns:
      One element; the same each time for the same numbers. A picture that fails costs a warning,
      and no page.
    """
    try:
        return _drawn(paint, label, width, height, MARGINS | margins)
    except Exception as error:  # matplotlib raises anything
        said = f"{label or 'a picture'} could not be drawn: {one_line(error)}"
        warnings.warn(said, stacklevel=2)
        return f"<span>{escape(said)}</span>"


def _drawn(
    paint: Callable[[Axes], object],
    label: str,
    width: int,
    height: int,
    margins: Mapping[str, float],
) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The reader's fonts have it
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        figure.subplots_adjust(
            margins["left"] / width,
            margins["bottom"] / height,
            1 - margins["right"] / width,
            1 - margins["top"] / height,
        )
        paint(figure.subplots())
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return _cleaned(file.getvalue(), label, width)


def swatch(place: int) -> str:
    """Draw the line and marker of the n-th series, for a legend."""

    def paint(axis: Axes) -> None:
        style = look(place)
        axis.plot([0, 1], [0, 0], color=style["color"], linestyle=style["linestyle"], linewidth=1.8)
        axis.plot([0.5], [0], style["marker"], color=style["color"], markersize=6)
        axis.set_axis_off()

    drawn = draw(paint, "", 34, 14, left=1, right=1, top=0, bottom=0)
    return drawn.replace('role="img" aria-label=""', 'aria-hidden="true"')


def plain_log(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    near = low > 0 and high / low < 100
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if near else (1.0,), numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _cleaned(text: str, label: str, width: int) -> str:
    body = text[text.index(">", text.index("<svg")) + 1 :]
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', body))
    prefix = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
    # A label's text stays as it is
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], used, prefix), body)
    body = re.sub(r">\s+<", "><", body)
    return (
        f'<svg viewBox="{view[1]}" width="{width}" role="img" '
        f'aria-label="{escape(label)}">{body.strip()}'
    )


def _tag(tag: str, used: set[str], prefix: str) -> str:
    tag = re.sub(r"\s+", " ", tag)
    tag = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", tag)
    tag = re.sub(r'(url\(|href=")#', rf"\1#{prefix}", tag.replace("xlink:href=", "href="))
    tag = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)  # it is the page's
    tag = tag.replace(INK, "currentColor")
    for place, colour in enumerate(SERIES[:-1]):
        tag = tag.replace(colour, f"var(--s{place})")
    return tag if "data:" in tag else re.sub(r"(\d\.\d\d)\d+", r"\1", tag)  # hundredths of a pixel
