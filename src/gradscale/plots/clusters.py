"""The clusters of some layers in a checkpoint: distributions of their momentum and of their learning rates.

After figures 2 and 3 of the SGG paper (arXiv 2506.01049).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gradscale.plots import style
from gradscale.plots.layers import short_name

if TYPE_CHECKING:
    from gradscale.plots.checkpoint import ClusterLayer

_BINS = 60
_ROW, _AROUND, _BAR = 1.25, 0.45, 0.13  # inches: at least, and by the clusters that have a bar in it
MOST_LAYERS = 6  # on a page
_NARROW = 5.0  # inches: no room for a third column


def chosen(names: Sequence[str], most: int) -> list[str]:
    """Return some of the layers, evenly from the first to the last."""
    if len(names) <= most:
        return list(names)
    return [names[round(place * (len(names) - 1) / (most - 1))] for place in range(most)]


@style.in_style
def clusters_figure(
    layers: Sequence[ClusterLayer], title: str, width: float = style.TEXT_WIDTH, *, at_peak: bool = False
) -> Figure:
    """Return a row per layer: how its momentum is spread, each cluster's learning rate, and that of each element.

    The last column, lr x scale / (sqrt(v) + eps), is what Adam multiplies an element's momentum by. It is left out
    below five inches, and where no layer has a second moment.

    Args:
        layers: at most `MOST_LAYERS`.
        title: of the figure.
        width: inches.
        at_peak: whether rates are those of the schedule's peak.
    """
    clusters = max(len(layer.scales) for layer in layers)
    rates_of_elements = width >= _NARROW and any(layer.divisor is not None for layer in layers)
    figure = style.figure(width, 0.75 + max(_ROW, _AROUND + _BAR * clusters) * len(layers))
    grid = figure.subplots(len(layers), 3 if rates_of_elements else 2, squeeze=False)
    for layer, row in zip(layers, grid, strict=True):
        hidden = _draw_momentum(row[0], layer)
        said = f", n = {layer.momentum.numel():,}" + (f" ({_percent(hidden)} outside)" if hidden else "")
        room = 0.9 * width - style.text_width(said, style.USUAL)
        row[0].set_title(style.shortened(short_name(layer.name), room, style.USUAL) + said, loc="left")
        _draw_rates(row[1], layer, named=width >= _NARROW)
        if rates_of_elements:
            _draw_rates_of_elements(row[2], layer)
    if rates_of_elements:
        grid[-1, 2].set_xlabel("lr × scale / (√v + ε)")
    handles: list[Any] = [
        Patch(**_look(one), edgecolor=_colour(one), label=name) for one, name in enumerate(_names(clusters))
    ]
    handles.append(Line2D([], [], color="black", linestyle="--", linewidth=0.8, label="boundary"))
    handles.append(Line2D([], [], color="0.4", linestyle=":", label="not scaled"))
    style.legend_below(figure, handles, width)
    whole = f"{title}, at the peak of its learning rate" if at_peak else title
    figure.suptitle(style.shortened(whole, width, style.USUAL))
    return figure


def shares(layer: ClusterLayer) -> list[float]:
    """Return the share of each cluster in the elements, in percent."""
    counts = np.bincount(layer.labels.numpy(), minlength=len(layer.scales))
    return [float(count) for count in 100 * counts / counts.sum()]


def _draw_momentum(axes: Any, layer: ClusterLayer) -> float:
    """Draw histograms and boundaries and return the share of the elements that are outside, in percent."""
    values, labels = layer.momentum.numpy(), layer.labels.numpy()
    known = np.isfinite(values)
    values, labels = values[known], labels[known]
    low, high = _range(values, layer.boundaries)
    outside = float(np.mean((values < low) | (values > high))) if len(values) else 0.0
    _histograms(axes, values, labels, np.linspace(low, high, _BINS + 1))
    for edge in layer.boundaries:
        axes.axvline(edge, color="black", linestyle="--", linewidth=0.8)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    _label(axes, "|momentum|" if layer.absolute else "momentum", max(abs(low), abs(high)))
    axes.set_ylabel("elements")
    return 100 * outside


def _range(values: Any, boundaries: Sequence[float]) -> tuple[float, float]:
    """Return what to show: everything, but for tails that would press the rest into a few bins."""
    if not len(values):
        return -1.0, 1.0
    everything = float(values.min()), float(values.max())
    low, high = (float(value) for value in np.quantile(values, (0.001, 0.999)))
    low, high = min([low, *boundaries]), max([high, *boundaries])
    room = 0.6 * (high - low)
    low, high = max(everything[0], low - room), min(everything[1], high + room)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _draw_rates(axes: Any, layer: ClusterLayer, *, named: bool) -> None:
    """Draw a bar per cluster, from the rate that all have to that of the cluster; beside it its share of elements."""
    rates = [layer.rate * scale for scale in layer.scales]
    for one, (rate, share) in enumerate(zip(rates, shares(layer), strict=True)):
        if share:
            axes.barh(one, rate - layer.rate, left=layer.rate, height=0.6, **_look(one), edgecolor=_colour(one))
    axes.axvline(layer.rate, color="0.4", linestyle=":", linewidth=1.0)
    axes.set_xscale("log")
    low, high = style.spread([layer.rate, *rates])
    axes.set_xlim(low / 1.6, high * 1.6)
    style.log_axis(axes.xaxis, low / 1.6, high * 1.6, sparse=True)
    _label(axes, "lr × scale", layer.rate)
    texts = list(map(_percent, shares(layer)))
    if named:
        texts = [f"{name}, {text}" for name, text in zip(_names(len(rates)), texts, strict=True)]
    axes.set_yticks(range(len(rates)), texts)
    axes.set_ylim(-0.6, len(rates) - 0.4)


def _draw_rates_of_elements(axes: Any, layer: ClusterLayer) -> None:
    if layer.divisor is None:
        axes.set_axis_off()
        return
    scales, labels = np.asarray(layer.scales), layer.labels.numpy()
    with np.errstate(divide="ignore"):
        rates = np.log10(layer.rate * scales[labels] / layer.divisor.numpy().astype(np.float64))
    known = np.isfinite(rates)
    rates, labels = rates[known], labels[known]
    low, high = (float(value) for value in np.quantile(rates, (0.0005, 0.9995))) if len(rates) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 0.1), _BINS + 1)
    _histograms(axes, np.clip(rates, low, high), labels, edges, shown=10**edges)
    axes.set_xscale("log")
    style.log_axis(axes.xaxis, 10**low, 10 ** edges[-1], sparse=True)


def _histograms(axes: Any, values: Any, labels: Any, edges: Any, shown: Any = None) -> None:
    """Draw how many elements of each cluster fall between the edges, one cluster over the other."""
    for one in range(int(labels.max()) + 1 if len(labels) else 0):
        counts, _ = np.histogram(values[labels == one], bins=edges)
        if counts.any():
            axes.stairs(counts, edges if shown is None else shown, fill=True, linewidth=0, **_look(one))
            axes.stairs(counts, edges if shown is None else shown, color=_colour(one), linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    style.log_axis(axes.yaxis, 0.7, axes.get_ylim()[1], sparse=True)


def _colour(one: int) -> str:
    return style.COLOURS[one % len(style.COLOURS)]


def _look(one: int) -> dict[str, Any]:
    turn = one // len(style.COLOURS)  # colours come again, and then with other hatches
    return {"facecolor": f"{_colour(one)}66", "hatch": style.HATCHES[(one + turn) % len(style.HATCHES)]}


def _label(axes: Any, what: str, typical: float) -> None:
    """Label the abscissa, with the power of ten of its numbers in the label, where it is in nobody's way."""
    exponent = math.floor(math.log10(typical)) if typical > 0 else 0
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 10.0**exponent:.3g}")
    axes.set_xlabel(f"{what} / $10^{{{exponent}}}$" if exponent else what)


def _names(clusters: int) -> list[str]:
    ends = {0: "lowest", clusters - 1: "highest"}
    return [ends.get(one, "middle" if clusters == 3 else f"no. {one}") for one in range(clusters)]


def _percent(share: float) -> str:
    if 0 < share < 0.1:
        return "< 0.1 %"
    return f"{share:.1f} %" if 0 < share < 1 or 99 < share < 100 else f"{share:.0f} %"
