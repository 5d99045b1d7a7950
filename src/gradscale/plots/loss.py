"""Loss curves of several runs in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradscale.plots import style
from gradscale.training.records import RunRecord


@style.in_style
def loss_figure(runs: Sequence[RunRecord], width: float = style.TEXT_WIDTH) -> Figure:
    """Return training losses as thin lines and validation losses as marked ones, per run.

    Args:
        runs: with at least one loss in any of them.
        width: inches.
    """
    figure = style.figure(width, 0.6 * width if width < 5 else 0.45 * width)
    axes = figure.subplots()
    values: list[float] = []
    for index, run in enumerate(runs):
        look = style.line(index)
        label = style.shortened(run.label, width - 1.6)
        if run.train_loss:
            steps, losses = zip(*run.train_loss, strict=True)
            # The curve is where validation curves are not: it must not hide them.
            axes.plot(steps, losses, color=look["color"], alpha=0.4, linewidth=0.8, label=f"{label}, training")
            values += losses
        if run.validation_loss:
            steps, losses = zip(*run.validation_loss, strict=True)
            marker = style.MARKERS[index % len(style.MARKERS)]
            axes.plot(steps, losses, marker=marker, label=f"{label}, validation: {losses[-1]:.4f}", **look)
            values += losses
    finite = sorted(value for value in values if math.isfinite(value))
    if finite and finite[0] > 0 and finite[-1] > 4 * finite[len(finite) // 2]:
        axes.set_yscale("log")  # a run that diverges would flatten all others
        style.log_axis(axes.yaxis, finite[0], finite[-1])
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_ylabel("loss (nats per token)")
    axes.grid()
    style.legend_below(figure, axes.get_legend_handles_labels()[0], width)
    return figure
