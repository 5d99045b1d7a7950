"""The heat map of a sweep: losses over its first two axes, a panel for each value of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window: sweeps run on machines without a display

from matplotlib.figure import Figure

from gradscale.sweep.grid import Axis
from gradscale.sweep.report import Results, at, panels

# Of even lightness steps, and told apart by the colour-blind; the best is dark.
_COLOURS = "viridis"
_BAD = "0.85"
_LONGEST = 24  # characters of a value beside the map


def draw(axes: Sequence[Axis], results: Results, output_dir: Path) -> list[Path]:
    """Write `heat_map.png` and `heat_map.svg`; return the paths."""
    listed = list(panels(axes))
    rows, columns = listed[0][1], listed[0][2]
    size = (2.4 + max(0.9 * len(columns.values), 1.6), 2.0 + 0.45 * len(rows.values))
    figure = Figure(figsize=(size[0] * len(listed), size[1]), layout="constrained")
    grids = [
        [[at(results, row, column, rest) for column in columns.values] for row in rows.values] for *_, rest in listed
    ]
    finite = [loss for grid in grids for line in grid for loss in line if math.isfinite(loss)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    palette = matplotlib.colormaps[_COLOURS].with_extremes(bad=_BAD)
    for index, ((name, *_), grid) in enumerate(zip(listed, grids, strict=True)):
        panel = figure.add_subplot(1, len(listed), index + 1)
        shown = [[loss if math.isfinite(loss) else math.nan for loss in line] for line in grid]
        image = panel.imshow(shown, cmap=palette, vmin=low, vmax=high if high > low else low + 1e-9, aspect="auto")
        for y, line in enumerate(grid):
            for x, loss in enumerate(line):
                text = f"{loss:.3f}" if math.isfinite(loss) else "diverged" if math.isinf(loss) else "missing"
                dark = math.isfinite(loss) and loss < (low + high) / 2
                panel.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        panel.set_xticks(
            range(len(columns.values)),
            [value[:_LONGEST] for value in columns.values],
            fontsize=8,
            rotation=30,
            ha="right",
        )
        panel.set_yticks(
            range(len(rows.values)), [value[:_LONGEST] for value in rows.values] if index == 0 else [], fontsize=8
        )
        panel.set_xlabel(columns.key, fontsize=9)
        panel.set_ylabel(rows.key if index == 0 else "", fontsize=9)
        panel.set_title(name, fontsize=9)
        if index == len(listed) - 1:
            figure.colorbar(image, ax=panel, label="validation loss (nats per token)")
    paths = [output_dir / f"heat_map.{ending}" for ending in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths
