"""The heat map of a sweep: losses over its first two axes, a panel for each value of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from gradscale.plots import style
from gradscale.sweep.grid import Axis
from gradscale.sweep.report import Results, at, panels

# Of even lightness steps, and told apart by the colour-blind; the best is dark.
_COLOURS = "viridis"
_CELL = 0.26  # inches: its height, with one line of type
_LONGEST = 1.1  # inches of a value beside the map


def draw(axes: Sequence[Axis], results: Results, output_dir: Path) -> list[Path]:
    """Write `heat_map.png` and `heat_map.svg`; return the paths."""
    return style.save(heat_map_figure(axes, results), output_dir / "heat_map")


@style.in_style
def heat_map_figure(axes: Sequence[Axis], results: Results, width: float = style.TEXT_WIDTH) -> Figure:
    """Return one map for each value of the axes after the second: loss as colour and, where there is room, as number.

    Args:
        axes: of the grid.
        results: of its cells.
        width: inches.
    """
    listed = list(panels(axes))
    rows, columns = listed[0][1], listed[0][2]
    beside = min(_LONGEST, max(map(style.text_width, rows.values)))
    title = min(2.2, max(style.text_width(name, style.USUAL) for name, *_ in listed))
    across = max(1, min(len(listed), int((width - 0.8 - beside) / max(title + 0.1, 0.45 * len(columns.values)))))
    down = math.ceil(len(listed) / across)
    across = math.ceil(len(listed) / down)  # as even as that goes
    cell = (width - 0.9 - beside) / across / len(columns.values)
    tilted = max(map(style.text_width, columns.values)) > 0.9 * cell
    height = 0.75 + (0.5 if tilted else 0.0) + _CELL * len(rows.values)
    figure = style.figure(width, max(1.6, down * height))
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    tables = [
        [[at(results, row, column, rest) for column in columns.values] for row in rows.values] for *_, rest in listed
    ]
    low, high = _bounds(tables)
    palette = matplotlib.colormaps[_COLOURS].with_extremes(bad=style.NEUTRAL)
    image: Any = None
    for panel, (name, *_), table in zip(grid.flat, listed, tables, strict=False):
        shown = [[loss if math.isfinite(loss) else math.nan for loss in line] for line in table]
        image = panel.imshow(shown, cmap=palette, vmin=low, vmax=high, aspect="auto")
        for y, line in enumerate(table):
            for x, loss in enumerate(line):
                dark = math.isfinite(loss) and loss < (low + high) / 2
                text = _shown(loss, 0.9 * cell)
                panel.text(x, y, text, ha="center", va="center", fontsize=style.SMALLEST, color="w" if dark else "k")
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if tilted else {}
        panel.set_xticks(
            range(len(columns.values)), [style.shortened(one, _LONGEST) for one in columns.values], **turned
        )
        panel.set_yticks(range(len(rows.values)), [style.shortened(one, _LONGEST) for one in rows.values])
        panel.set_title(style.shortened(name, max(title, width / across - 0.8 - beside), style.USUAL))
    for panel in list(grid.flat)[len(listed) :]:
        panel.set_axis_off()
    for panel in grid[:, 0]:
        panel.set_ylabel(rows.key)
    figure.supxlabel(columns.key, fontsize=style.USUAL)
    figure.colorbar(image, ax=grid, label="validation loss\n(nats per token)", aspect=15 * down, pad=0.02)
    return figure


def _bounds(tables: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float]:
    finite = [loss for table in tables for line in table for loss in line if math.isfinite(loss)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    return low, high if high > low else low + 1e-9


def _shown(loss: float, room: float) -> str:
    """Return a loss in as many digits as there is room for, and nothing where that is too few to tell two apart."""
    if math.isfinite(loss):
        texts = [f"{loss:.3f}", f"{loss:.2f}"]
    else:
        texts = ["diverged", "div."] if math.isinf(loss) else ["missing", "–"]
    return next((text for text in texts if style.text_width(text) <= room), "")
