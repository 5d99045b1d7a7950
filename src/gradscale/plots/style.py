"""The style that all pictures share: colours, line styles, and type that can be read at the width of a paper."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib

matplotlib.use("Agg")  # no window: training runs on machines without a display

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Inches, as conferences in two columns have them.
COLUMN_WIDTH, TEXT_WIDTH, PAGE_HEIGHT = 3.3, 6.8, 9.0
SMALLEST, USUAL = 7.0, 8.0  # points

# Okabe and Ito's colours, which the common kinds of colour blindness keep apart; line styles tell them apart in grey,
# and more than eight lines from each other.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X"
HATCHES = ("////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oooo", "||||")
NEUTRAL = "0.85"  # of what is missing

_RC = {
    "font.size": USUAL,
    "axes.titlesize": USUAL,
    "axes.labelsize": USUAL,
    "figure.titlesize": USUAL,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
    "legend.fontsize": SMALLEST,
    "legend.frameon": False,
    "legend.handlelength": 2.4,  # long enough to tell dashes from dots
    "lines.linewidth": 1.2,
    "lines.markersize": 3.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.4,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "svg.hashsalt": "gradscale",
}
_DPI = 200
_P = ParamSpec("_P")
_R = TypeVar("_R")


def in_style(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function that draws with these sizes, and leave those of its caller as they are."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return drawn


def line(index: int) -> dict[str, Any]:
    """Return colour and line style of the series at `index`: all differ in grey up to 4, and in colour up to 32."""
    shift = index // len(COLOURS)
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[(index + shift) % len(STYLES)]}


def figure(width: float, height: float) -> Figure:
    """Return an empty figure.

    Args:
        width: inches.
        height: inches; no more than a page has.
    """
    return Figure(figsize=(width, min(height, PAGE_HEIGHT)), layout="constrained")


def legend_below(figure: Figure, handles: Sequence[Any], width: float) -> None:
    """Put a legend under the axes, in as many columns as its longest label leaves room for; makes the figure higher.

    Args:
        figure: to put it into.
        handles: artists with labels.
        width: of the figure, inches.
    """
    if not handles:
        return
    longest = max(text_width(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(width / (longest + 0.55))))
    rows = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.15 * rows + 0.1)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def text_width(text: str, points: float = SMALLEST) -> float:
    """Return about how many inches a text takes."""
    return 0.62 * points / 72 * len(text)


def shortened(text: str, inches: float, points: float = SMALLEST) -> str:
    """Return a text that fits, by taking from its middle."""
    room = max(5, int(inches / text_width("x", points)))
    return text if len(text) <= room else f"{text[: room // 2 - 1]}…{text[len(text) - (room - room // 2) :]}"


def log_axis(axis: Any, low: float, high: float, *, sparse: bool = False) -> None:
    """Label a logarithmic axis by its decades, and where it has fewer than two of these by their parts as well.

    Args:
        axis: of matplotlib.
        low: where it begins.
        high: where it ends.
        sparse: whether there is room for three labels only.
    """
    decades = math.log10(high / low)
    if decades < 1.5:
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if sparse and decades > 1 else (1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda value, _: f"{value:.3g}")
    else:
        axis.set_major_locator(LogLocator(numticks=4 if sparse else 8))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG and return the paths; the same figure makes the same bytes."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with matplotlib.rc_context(_RC):
        for path in paths:
            figure.savefig(path, dpi=_DPI, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return least and largest of the finite and positive values, (1, 1) if there are none."""
    known = [value for value in values if math.isfinite(value) and value > 0]
    return (min(known), max(known)) if known else (1.0, 1.0)
