"""The self-check of a first step: that the segments of all ranks make up each layer, and hold its values."""

from __future__ import annotations

import torch

from gradscale.sharding.reduce import sum_over_shards
from gradscale.sharding.view import Segment, TensorView, UnsupportedShardingError

_MODULUS = 2**31 - 1  # sums of it over any number of ranks stay far below 2^63


def check_coverage(views: list[TensorView]) -> None:
    """Check that every element of each sharded layer is on exactly one rank, and that flat tensors hold the parameters.

    Costs one all-reduce of four integers per layer. Every rank must call it with the same layers.

    Raises:
        UnsupportedShardingError: a layer is not covered, or another tensor than the one thought of. On all ranks.
    """
    checked = [
        (segment, view.flat and segment.offset is not None)
        for view in views
        for segment in view.segments
        if segment.process_groups or view.agrees is not None
    ]
    disagreeing = {
        id(segment)
        for view in views
        if view.agrees is not None
        for segment, same in zip(view.segments, view.agrees(), strict=True)
        if not same
    }
    local = [torch.tensor([*_sums(segment, ordered), id(segment) in disagreeing]) for segment, ordered in checked]
    # int64 throughout: sums of positions are far beyond int32.
    totals = sum_over_shards(local, [segment.process_groups for segment, _ in checked], largest=2**62)
    for (segment, ordered), total in zip(checked, totals, strict=True):
        count, positions, squares, wrong = (int(value) for value in total)
        expected = _sums(Segment(segment.name, segment.shape, 0, segment.numel, 0), ordered)
        if (count, positions % _MODULUS, squares % _MODULUS) != expected:
            raise UnsupportedShardingError(
                f"the ranks' parts of {segment.name} {list(segment.shape)} do not make up the layer: they have {count} "
                f"of {segment.numel} elements, or some twice. This is a version or a setting of the engine that "
                "gradscale does not know; nothing has been changed"
            )
        if wrong:
            raise UnsupportedShardingError(
                f"what the engine optimizes in the place of {segment.name} {list(segment.shape)} has other values than "
                "the parameter. If the model was changed after DeepSpeed took it over, call refresh_fp32_params() of "
                "DeepSpeed's optimizer; nothing has been changed"
            )


def _sums(segment: Segment, ordered: bool) -> tuple[int, int, int]:
    """Number of elements, and the sums of their positions in the layer and of the squares of these, modulo a prime.

    Stretches that overlap or leave a gap give other sums than the layer, but for chance. `ordered` is False where
    positions are not known.
    """
    if not ordered or segment.offset is None:
        return segment.length, 0, 0
    low, high = segment.offset, segment.offset + segment.length
    return segment.length, (_sum_below(high) - _sum_below(low)) % _MODULUS, (_squares(high) - _squares(low)) % _MODULUS


def _sum_below(n: int) -> int:
    return n * (n - 1) // 2


def _squares(n: int) -> int:
    return (n - 1) * n * (2 * n - 1) // 6
