"""The pictures of a study: loss curves, learning-rate sweeps, and each layer's scale over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window: studies run on machines without a display

from matplotlib.figure import Figure

from gradscale.quality.statistics import Line, Results, final_loss
from gradscale.quality.study import Study

# Okabe and Ito's, told apart by the colour-blind; line styles tell more than eight apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_STYLES = ("-", "--", ":", "-.")
_NAMED = 10  # optimizers with a colour and a line in the legend; more cannot be told apart
_OTHERS = {"color": "0.85", "linewidth": 0.8, "zorder": 0}
_SIZE = (6.4, 4.0)  # inches: readable at the width of a paper's page


def draw(study: Study, found: list[Line], results: Results, output_dir: Path) -> list[Path]:
    """Write `curves`, `learning_rates` and, of SGG's runs, `scales` as PNG and SVG; return the paths.

    Of many optimizers the baseline and those that end lowest are named, and the others grey.
    """
    best = sorted(found, key=lambda line: (line.arm != study.baseline, line.loss.mean))
    named = {line.arm: index for index, line in enumerate(best[:_NAMED])}
    pictures = {"curves": _curves(study, found, results, named), "learning_rates": _sweeps(study, results, named)}
    for line in found:
        result = results[line.arm, line.best_lr, study.seeds[0]]
        if result["groupings"]:
            pictures[f"scales_{line.arm}"] = _scales(line.arm, result)
    paths = []
    for name, figure in pictures.items():
        for ending in ("png", "svg"):
            paths.append(output_dir / f"{name}.{ending}")
            figure.savefig(paths[-1], dpi=150)
    return paths


def _curves(study: Study, found: list[Line], results: Results, named: Mapping[str, int]) -> Figure:
    figure, axes = _figure()
    for line in sorted(found, key=lambda line: named.get(line.arm, -1)):
        runs = [results[line.arm, line.best_lr, seed]["curve"] for seed in study.seeds]
        points = [(same[0][0], mean(point[2] for point in same)) for same in zip(*runs, strict=False)]
        points = [(step, loss) for step, loss in points if math.isfinite(loss)]
        style = _of(line.arm, f"{line.arm}, lr {line.best_lr:g}", named)
        axes.plot(*zip(*points, strict=True), **style)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss (nats per token)")
    axes.legend(fontsize=7, frameon=False)
    return figure


def _sweeps(study: Study, results: Results, named: Mapping[str, int]) -> Figure:
    figure, axes = _figure()
    for arm in sorted(study.arms.values(), key=lambda arm: named.get(arm.name, -1)):
        points = []
        for rate in arm.learning_rates:
            losses = [
                final_loss(results[arm.name, rate, seed])
                for seed in study.select_seeds
                if (arm.name, rate, seed) in results
            ]
            if losses and all(map(math.isfinite, losses)):
                points.append((rate, mean(losses)))
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, **_of(arm.name, arm.name, named))
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("validation loss (nats per token)")
    axes.legend(fontsize=7, frameon=False)
    return figure


def _scales(arm: str, result: Any) -> Figure:
    """The mean scale of each layer after each grouping; layers with the largest and least are named."""
    figure, axes = _figure()
    series: dict[str, list[tuple[int, float]]] = {}
    for step, layers in result["groupings"]:
        for name, (scales, counts) in layers.items():
            weighted = sum(scale * count for scale, count in zip(scales, counts, strict=True)) / max(1, sum(counts))
            series.setdefault(name, []).append((step, weighted))
    last = sorted(series, key=lambda name: series[name][-1][1])
    named = [*last[-4:][::-1], *last[:4]] if len(last) > 8 else last
    for name, points in series.items():
        style = _style(named.index(name)) if name in named else {"color": "0.8", "linewidth": 0.8}
        axes.plot(*zip(*points, strict=True), label=name if name in named else None, **style)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("mean scale of the layer")
    axes.set_title(arm, fontsize=9)
    axes.legend(fontsize=6, frameon=False)
    return figure


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.add_subplot()


def _of(arm: str, label: str, named: Mapping[str, int]) -> dict[str, Any]:
    return {"label": label, **_style(named[arm])} if arm in named else _OTHERS


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _STYLES[index // len(_COLOURS) % len(_STYLES)]}
