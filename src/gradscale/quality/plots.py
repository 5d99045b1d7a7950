"""The pictures of a study: loss curves, learning-rate sweeps, and each layer's scale over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from gradscale.plots import style
from gradscale.plots.layers import short_name
from gradscale.quality.statistics import Line, Results, final_loss
from gradscale.quality.study import Study

_NAMED = 10  # optimizers with a colour and a line in the legend; more cannot be told apart
_OTHERS = {"color": "0.85", "linewidth": 0.8, "zorder": 0}


def draw(study: Study, found: list[Line], results: Results, output_dir: Path) -> list[Path]:
    """Write `curves`, `learning_rates` and, of SGG's runs, `scales_...` as PNG and SVG; return the paths.

    Of many optimizers the baseline and those that end lowest are named, and the others grey.
    """
    best = sorted(found, key=lambda line: (line.arm != study.baseline, line.loss.mean))
    named = {line.arm: index for index, line in enumerate(best[:_NAMED])}
    pictures = {"curves": _curves(study, found, results, named), "learning_rates": _sweeps(study, results, named)}
    for line in found:
        result = results[line.arm, line.best_lr, study.seeds[0]]
        if result["groupings"]:
            pictures[f"scales_{line.arm}"] = _scales(line.arm, result)
    return [path for name, figure in pictures.items() for path in style.save(figure, output_dir / name)]


@style.in_style
def _curves(study: Study, found: list[Line], results: Results, named: Mapping[str, int]) -> Figure:
    figure, axes = _figure()
    for line in sorted(found, key=lambda line: named.get(line.arm, -1)):
        runs = [results[line.arm, line.best_lr, seed]["curve"] for seed in study.seeds]
        points = [(same[0][0], mean(point[2] for point in same)) for same in zip(*runs, strict=False)]
        points = [(step, loss) for step, loss in points if math.isfinite(loss)]
        axes.plot(*zip(*points, strict=True), **_of(line.arm, f"{line.arm}, lr {line.best_lr:g}", named))
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss (nats per token)")
    style.legend_below(figure, axes.get_legend_handles_labels()[0], style.TEXT_WIDTH)
    return figure


@style.in_style
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
            marker = style.MARKERS[named.get(arm.name, 0) % len(style.MARKERS)]
            axes.plot(*zip(*points, strict=True), marker=marker, **_of(arm.name, arm.name, named))
    axes.set_xscale("log")
    style.log_axis(axes.xaxis, *style.spread([rate for arm in study.arms.values() for rate in arm.learning_rates]))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("validation loss (nats per token)")
    style.legend_below(figure, axes.get_legend_handles_labels()[0], style.TEXT_WIDTH)
    return figure


@style.in_style
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
        look = style.line(named.index(name)) if name in named else {"color": style.NEUTRAL, "linewidth": 0.8}
        axes.plot(*zip(*points, strict=True), label=short_name(name) if name in named else None, **look)
    axes.set_yscale("log")
    style.log_axis(axes.yaxis, *style.spread([scale for points in series.values() for _, scale in points]))
    axes.set_xlabel("step")
    axes.set_ylabel("mean scale of the layer")
    axes.set_title(arm)
    style.legend_below(figure, axes.get_legend_handles_labels()[0], style.TEXT_WIDTH)
    return figure


def _figure() -> tuple[Figure, Any]:
    figure = style.figure(style.TEXT_WIDTH, 0.5 * style.TEXT_WIDTH)
    return figure, figure.add_subplot()


def _of(arm: str, label: str, named: Mapping[str, int]) -> dict[str, Any]:
    return {"label": label, **style.line(named[arm])} if arm in named else _OTHERS
