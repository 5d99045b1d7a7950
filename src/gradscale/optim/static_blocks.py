"""`grouping="static"`: a scale for each block of a layer's rows, which no momentum moves into another block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscale.optim.measure import Measured, Way, measure
from gradscale.optim.pools import Pool
from gradscale.optim.report import LayerReport
from gradscale.optim.rule import Group, Layer, State
from gradscale.scalers.blocks import block_statistics
from gradscale.scalers.sgg import Grouping


def rows_in_a_block(group: Group) -> int:
    """Rows that share a scale."""
    return int(group["static_block"] or 1)


def scales_of_blocks(scales: Tensor, group: Group) -> Tensor:
    """Return the scale of each block, of those that are kept: one for each row, the same for all rows of a block."""
    return scales[:: rows_in_a_block(group)]


def write_scales(scales: Tensor, state: State, group: Group) -> None:
    """Write the scales of blocks into a layer's state."""
    of_rows = scales.repeat_interleave(rows_in_a_block(group))
    state["scales"].copy_(of_rows[: len(state["scales"])])


def with_scales_of_rows(state: State, shape: torch.Size, group: Group) -> State:
    """Return state in which there is a scale for each element, as passes take it, where there is one for each row.

    It is a view: what a grouping decides after a pass has been prepared is seen by that pass.

    Args:
        state: state of a tensor; not changed.
        shape: of the tensor.
        group: its options.
    """
    if group.get("grouping") != "static" or "scales" not in state:
        return state
    return {**state, "scales": state["scales"].view(-1, *[1] * (len(shape) - 1)).expand(shape)}


def measure_blocks(layer: Layer) -> Grouping | None:
    """Return the statistics of a layer's blocks, as clusters of one layer on the CPU; None of one that is all zero.

    Raises:
        ArithmeticError: it holds inf or NaN.
    """
    momentum = layer.grouped.detach()
    # Apple's GPUs have no float64.
    momentum = momentum.cpu() if momentum.device.type == "mps" else momentum
    statistic, absolute = layer.group["statistic"], layer.group["momentum_sign"] == "absolute"
    sizes, means, found = block_statistics(statistic, momentum, rows_in_a_block(layer.group), absolute=absolute)
    if not bool((means.isfinite() & found.isfinite()).all()):
        raise ArithmeticError(f"the momentum of {layer.name} is not finite")
    if not bool(momentum.any()):
        return None
    each = (means.cpu()[None], sizes.cpu()[None], found.cpu()[None])
    return Grouping(torch.empty(1, 0), *each, statistic=statistic)


def measure_any(layers: Sequence[Pool], ways: Sequence[Way], *, deviations: bool) -> Measured:
    """Group layers as `measure` does, and those of fixed blocks besides. Args: see there."""
    static = [place for place, way in enumerate(ways) if way.grouping == "static"]
    if not static:
        return measure(layers, ways, deviations=deviations)
    found = Measured([], {}, [], None)
    others = [place for place, way in enumerate(ways) if way.grouping != "static"]
    if others:
        some = measure([layers[place] for place in others], [ways[place] for place in others], deviations=deviations)
        rows = {others[place]: row for place, row in some.rows.items()}
        found = Measured(some.groupings, rows, [others[place] for place in some.bad], some.deviations)
    for place in static:
        try:
            blocks = measure_blocks(layers[place].layers[0])  # blocks are of one layer
        except ArithmeticError:
            found.bad.append(place)
            continue
        if blocks is not None:
            found.groupings.append(blocks)
            found.rows[place] = blocks, 0
    found.bad.sort()
    return found


def report_blocks(layer: Layer, grouping: Grouping, scales: Tensor) -> LayerReport:
    """Report a layer by the medians over its blocks, which may be as many as an embedding has tokens."""
    centroids, mda = grouping.centroids[0], grouping.mda[0]
    return LayerReport(
        name=layer.name,
        numel=layer.numel,
        counts=(layer.numel,),
        centroids=(float(centroids.median()),),
        mda=(float(mda.median()),),
        scales=(float(scales.median()),),
    )
