"""Gradient norms over the steps, per kind of layer or per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradscale.plots import style
from gradscale.plots.layers import kind_of, matching, short_name
from gradscale.training.errors import ConfigError
from gradscale.training.records import RunRecord

MOST_LINES = 32  # that colours and line styles tell apart


@style.in_style
def norms_figure(
    runs: Sequence[RunRecord], width: float = style.TEXT_WIDTH, *, layers: Sequence[str] | None = None
) -> Figure:
    """Return one panel per run, with a line per kind of layer (all blocks together), or per layer that is asked for.

    The norm of a kind is the root of the sum of the squares of its layers' norms. Norms are those before clipping where
    the training logs have the norm of all gradients at every step, else those after it.

    Args:
        runs: all with gradient norms.
        width: inches.
        layers: patterns of layers; None draws kinds.

    Raises:
        ConfigError: a pattern matches no layer, or the patterns more than can be told apart.
    """
    factors = [_unclipped(run) for run in runs]
    all_before = all(factor is not None for factor in factors)
    # One scale for all panels: they are compared.
    curves = [_curves(run, layers, factor if all_before else None) for run, factor in zip(runs, factors, strict=True)]
    names = list(dict.fromkeys(name for of_run in curves for name in of_run))
    if len(names) > MOST_LINES:
        raise ConfigError(f"--layers: {len(names)} layers match, {MOST_LINES} lines can be told apart: name fewer")
    columns = 1 if len(runs) == 1 or width < 5 else 2
    rows = math.ceil(len(runs) / columns)
    panel = 0.6 * width / columns if width / columns < 5 else 0.45 * width
    figure = style.figure(width, min(rows * panel + 0.2 * rows, style.PAGE_HEIGHT - 1.5))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    looks = {name: style.line(index) for index, name in enumerate(names)}
    room = width - 0.8
    handles: dict[str, Any] = {}
    low, high = style.spread([norm for of_run in curves for curve in of_run.values() for _, norm in curve])
    for axes, run, of_run in zip(grid.flat, runs, curves, strict=False):
        for name, points in of_run.items():
            steps, norms = zip(*points, strict=True)
            (handles[name],) = axes.plot(steps, norms, label=style.shortened(name, room), **looks[name])
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if axes in grid[:, 0]:
            axes.set_ylabel("gradient norm" + ("" if all_before else " (after clipping)"))
        axes.grid()
        if len(runs) > 1:
            axes.set_title(style.shortened(run.label, width / columns - 0.6, style.USUAL))
    style.log_axis(grid[0, 0].yaxis, low, high)
    for axes in list(grid.flat)[len(runs) :]:
        axes.set_axis_off()
    style.legend_below(figure, [handles[name] for name in names], width)
    return figure


def _curves(
    run: RunRecord, layers: Sequence[str] | None, factors: dict[int, float] | None
) -> dict[str, list[tuple[int, float]]]:
    """Return (step, norm) of each kind or layer, multiplied by the factor of the step."""
    names = list(dict.fromkeys(name for line in run.norms for name in line["norms"]))
    wanted = set(names if layers is None else matching(names, layers, repr(str(run.folder))))
    called = {name: kind_of(name) if layers is None else short_name(name) for name in names if name in wanted}
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in run.norms:
        squares: dict[str, float] = {}
        for name, shown in called.items():
            norm = line["norms"].get(name, 0.0)
            # A norm that was not finite is null in the file.
            squares[shown] = squares.get(shown, 0.0) + (math.nan if norm is None else norm**2)
        factor = 1.0 if factors is None else factors[line["step"]]
        for shown, square in squares.items():
            curves.setdefault(shown, []).append((line["step"], math.sqrt(square) * factor))
    return curves


def _unclipped(run: RunRecord) -> dict[int, float] | None:
    """Return by what clipping has divided the gradients of each step; None where the log does not say it of all."""
    whole = dict(run.whole_norm)
    factors = {}
    for line in run.norms:
        total, logged = line.get("total"), whole.get(line["step"])
        if logged is None or not total or not math.isfinite(logged):
            return None
        # What clipping leaves is never more; a little less is rounding.
        factors[line["step"]] = max(1.0, logged / total)
    return factors
