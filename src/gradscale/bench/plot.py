"""Bars of the ratios, per workload."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gradscale.plots.style import COLOURS


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw the ratio to the baseline of every optimizer, groupings included, with its quartiles."""
    results = report["results"]
    labels = [entry["optimizer"] for entry in results[0]["optimizers"]]
    figure = Figure(figsize=(3 + 2 * len(results), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(labels)
    for index, label in enumerate(labels):
        entries = [one["optimizers"][index] for one in results]
        values = [entry["amortized_ratio"] or entry["ratio"] for entry in entries]
        heights = [value["median"] for value in values]
        spread = [
            [value["median"] - value["q1"] for value in values],
            [value["q3"] - value["median"] for value in values],
        ]
        places = [place + (index - (len(labels) - 1) / 2) * width for place in range(len(results))]
        colour = COLOURS[index % len(COLOURS)]
        bars = axes.bar(places, heights, 0.9 * width, yerr=spread, capsize=3, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axhline(1, color="0.4", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(results)), [one["shapes"] for one in results])
    interval = report["method"]["interval"]
    axes.set_ylabel(f"time of a step, to the baseline\n(groupings included, T = {interval})", fontsize=9)
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=150)
