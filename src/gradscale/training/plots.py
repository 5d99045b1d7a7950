"""Two pictures, as PNG and SVG: loss curves of all runs, and the scales of every layer over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window: training runs on machines without a display

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from gradscale.training.records import RunRecord, read_runs

# Okabe and Ito's colours, which the common kinds of colour blindness keep apart; line styles tell them apart in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osD^vP"


def draw(folders: Sequence[Path], into: Path) -> list[Path]:
    """Draw the runs in `folders` and return the files written into the folder `into`.

    `loss.*` is always drawn, `scales.*` where an optimizer has grouped.

    Raises:
        ConfigError: a folder is missing or holds no run.
    """
    runs = read_runs(folders)
    into.mkdir(parents=True, exist_ok=True)
    written = _save(loss_figure(runs), into / "loss")
    if any(run.scales for run in runs):
        written += _save(scales_figure([run for run in runs if run.scales]), into / "scales")
    return written


def loss_figure(runs: Sequence[RunRecord]) -> Figure:
    """Return training losses as thin lines and validation losses as marked ones, per run."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    values: list[float] = []
    for index, run in enumerate(runs):
        colour, style = _COLOURS[index % len(_COLOURS)], _STYLES[index % len(_STYLES)]
        if run.train_loss:
            steps, losses = zip(*run.train_loss, strict=True)
            # The curve is where validation curves are not: it must not hide them.
            axes.plot(steps, losses, color=colour, alpha=0.35, linewidth=1, label=f"{run.label}, training")
            values += losses
        if run.validation_loss:
            steps, losses = zip(*run.validation_loss, strict=True)
            label = f"{run.label}, validation: {losses[-1]:.4f}"
            marker = _MARKERS[index % len(_MARKERS)]
            axes.plot(steps, losses, color=colour, linestyle=style, marker=marker, markersize=4, label=label)
            values += losses
    finite = sorted(value for value in values if math.isfinite(value))
    if finite and finite[-1] > 4 * finite[len(finite) // 2]:
        axes.set_yscale("log")  # a run that diverges would flatten all others
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title("Loss")
    axes.grid(alpha=0.3)
    if values:
        axes.legend(frameon=False)
    return figure


def scales_figure(runs: Sequence[RunRecord]) -> Figure:
    """Return one map per run and cluster: layers downwards, groupings rightwards, colour the scale (white is 1)."""
    layers = list(dict.fromkeys(name for run in runs for row in run.scales for name in row["layers"]))
    clusters = max(len(layer["scales"]) for run in runs for row in run.scales for layer in row["layers"].values())
    height = min(30.0, 1.2 + len(runs) * (0.9 + 0.2 * len(layers)))
    figure = Figure(figsize=(3.2 + 2.9 * clusters, height), layout="constrained")
    grid = figure.subplots(len(runs), clusters, squeeze=False, sharex="row", sharey=True)
    tables = [[_table(run, layers, cluster) for cluster in range(clusters)] for run in runs]
    finite = [abs(value) for row in tables for table in row for value in table[np.isfinite(table)].tolist()]
    reach = max([0.25, *finite])
    norm = TwoSlopeNorm(0.0, -reach, reach)
    image: Any = None
    for run, row, axes_row in zip(runs, tables, grid, strict=True):
        edges = _edges([line["step"] for line in run.scales])
        for cluster, (table, axes) in enumerate(zip(row, axes_row, strict=True)):
            axes.set_facecolor("0.85")  # a cluster without elements
            image = axes.pcolormesh(edges, np.arange(len(layers) + 1), table, cmap="PuOr_r", norm=norm)
            axes.set_title(_cluster_name(cluster, clusters), fontsize=10)
            axes.set_xlabel("step", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.set_yticks(np.arange(len(layers)) + 0.5, [_short(name) for name in layers], fontsize=7)
        axes_row[0].set_ylabel(run.label, fontsize=10)
    grid[0, 0].invert_yaxis()  # the first layer on top; the axes share it
    bar = figure.colorbar(image, ax=grid, aspect=40, pad=0.02)
    ticks = [tick for tick in (-4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4) if abs(tick) <= reach]
    bar.set_ticks(ticks, labels=[f"{2.0**tick:.3g}" for tick in ticks])
    bar.set_label("learning-rate scale", fontsize=9)
    figure.suptitle("Scales per layer (clusters in order of momentum; grey: empty)", fontsize=11)
    return figure


def _table(run: RunRecord, layers: Sequence[str], cluster: int) -> Any:
    """Return log2 of the scales, `[layers, groupings]`, NaN where the layer or the cluster is empty."""
    table = np.full((len(layers), len(run.scales)), np.nan)
    for column, line in enumerate(run.scales):
        for row, name in enumerate(layers):
            layer = line["layers"].get(name)
            if layer is not None and cluster < len(layer["scales"]) and layer["counts"][cluster]:
                table[row, column] = math.log2(layer["scales"][cluster])
    return table


def _edges(steps: Sequence[int]) -> list[float]:
    """Return the borders of the columns: a grouping holds until the next one, the last as long as the one before."""
    last = steps[-1] - steps[-2] if len(steps) > 1 else max(1, steps[0])
    return [*map(float, steps), float(steps[-1] + last)]


def _cluster_name(cluster: int, clusters: int) -> str:
    if clusters == 1:
        return "whole layer"
    ends = {0: " (lowest)", clusters - 1: " (highest)"}
    return f"cluster {cluster}{ends.get(cluster, '')}"


def _short(name: str) -> str:
    """Return a parameter's name without the parts that all layers share."""
    parts = [
        part for part in name.split(".") if part not in ("model", "transformer", "module", "weight", "layers", "h")
    ]
    return ".".join(parts) or name


def _save(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths
