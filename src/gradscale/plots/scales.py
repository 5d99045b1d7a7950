"""The scales of every layer over the steps, as a map per run and cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradscale.plots import style
from gradscale.plots.layers import short_name
from gradscale.training.records import RunRecord

_ROW = 0.135  # inches: a line of the smallest type


@style.in_style
def scales_figure(runs: Sequence[RunRecord], width: float = style.TEXT_WIDTH) -> Figure:
    """Return one map per run and cluster: layers downwards, groupings rightwards, colour the scale (white is 1).

    Args:
        runs: all with groupings.
        width: inches. On a page with more layers than lines of type, not every layer is named.
    """
    layers = list(dict.fromkeys(name for run in runs for row in run.scales for name in row["layers"]))
    clusters = max(len(layer["scales"]) for run in runs for row in run.scales for layer in row["layers"].values())
    panel = max(1.1, min(_ROW * len(layers), (style.PAGE_HEIGHT - 0.8) / len(runs) - 0.5))
    figure = style.figure(width, 0.8 + len(runs) * (panel + 0.35))
    grid = figure.subplots(len(runs), clusters, squeeze=False, sharex="row", sharey=True)
    tables = [[_table(run, layers, cluster) for cluster in range(clusters)] for run in runs]
    finite = [abs(value) for row in tables for table in row for value in table[np.isfinite(table)].tolist()]
    reach = max([0.25, *finite])
    norm = TwoSlopeNorm(0.0, -reach, reach)
    every = math.ceil(len(layers) * _ROW / panel - 1e-9)
    named = range(0, len(layers), max(1, every))
    names = [style.shortened(short_name(layers[row]), 0.34 * width) for row in named]
    image: Any = None
    for run, row, axes_row in zip(runs, tables, grid, strict=True):
        edges = _edges([line["step"] for line in run.scales])
        own = max(len(layer["scales"]) for line in run.scales for layer in line["layers"].values())
        for cluster, (table, axes) in enumerate(zip(row, axes_row, strict=True)):
            if cluster >= own:
                axes.set_axis_off()
                continue
            axes.set_facecolor(style.NEUTRAL)  # a cluster without elements
            # Rasterized: as vectors, a map of many layers is a large file with seams between its cells.
            image = axes.pcolormesh(edges, np.arange(len(layers) + 1), table, cmap="PuOr_r", norm=norm, rasterized=True)
            axes.set_title(_cluster_name(cluster, own))
            axes.xaxis.set_major_locator(MaxNLocator(4 if width / clusters > 1.5 else 2, integer=True))
            axes.set_yticks([place + 0.5 for place in named], names)
        if len(runs) > 1:
            axes_row[0].set_ylabel(style.shortened(run.label, panel, style.USUAL))
    grid[0, 0].invert_yaxis()  # the first layer on top; the axes share it
    bar = figure.colorbar(image, ax=grid, aspect=40, pad=0.02)
    ticks = [tick for tick in (-4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4) if abs(tick) <= reach]
    ticks = [tick for tick in ticks if reach < 1.5 or tick == int(tick)]
    bar.set_ticks(ticks, labels=[f"{2.0**tick:.3g}" for tick in ticks])
    bar.set_label("learning-rate scale")
    figure.supxlabel("step", fontsize=style.USUAL)
    if clusters > 1:
        figure.suptitle("cluster by momentum (grey: no elements)")
    return figure


def _table(run: RunRecord, layers: Sequence[str], cluster: int) -> Any:
    """Return log2 of the scales, `[layers, groupings]`, NaN where the layer or the cluster is empty."""
    table = np.full((len(layers), len(run.scales)), np.nan)
    for column, line in enumerate(run.scales):
        for row, name in enumerate(layers):
            layer = line["layers"].get(name)
            if layer is None or cluster >= len(layer["scales"]) or not layer["counts"][cluster]:
                continue
            scale = layer["scales"][cluster]
            table[row, column] = math.log2(scale) if scale else math.nan
    return table


def _edges(steps: Sequence[int]) -> list[float]:
    """Return the borders of the columns: a grouping holds until the next one, the last as long as the one before."""
    last = steps[-1] - steps[-2] if len(steps) > 1 else max(1, steps[0])
    return [*map(float, steps), float(steps[-1] + last)]


def _cluster_name(cluster: int, clusters: int) -> str:
    if clusters == 1:
        return "whole layer"
    ends = {0: "lowest", clusters - 1: "highest"}
    return ends.get(cluster, "middle" if clusters == 3 else f"no. {cluster}")
