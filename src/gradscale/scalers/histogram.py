"""Integer histograms of a tensor over the bfloat16 grid.

Rounding a number to bfloat16 is a ready-made binning: 65,536 bins whose width follows the magnitude (relative width at
most 2^-7), found by one pass without knowing minimum or maximum. The counts are integers, so they add up to the same
numbers under any split of the tensor over chunks, ranks or engines, and all that is derived from them (centroids,
medians, scales) is the same bit for bit.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_MAGNITUDES = 1 << 15  # bit patterns of one sign
_NON_FINITE = 1 << 7  # bit patterns of one sign whose exponent is all ones: inf and NaN
N_BINS = 2 * (_MAGNITUDES - _NON_FINITE)  # bins of finite values, in ascending order of value
ZERO_EDGE = N_BINS // 2  # bins below are negative (the last is -0), bins from here on are positive (the first is +0)
_CHUNK = 1 << 22  # elements in one pass; bounds the temporary memory (10 bytes per element of a chunk)


@functools.lru_cache(maxsize=8)
def bin_values(device: torch.device) -> Tensor:
    """Return the value of every bin: float64, shape `[N_BINS]`, ascending."""
    patterns = torch.arange(_MAGNITUDES - _NON_FINITE, dtype=torch.int16, device=device)
    positive = patterns.view(torch.bfloat16).to(torch.float64)
    return torch.cat([-positive.flip(0), positive])


def count_values(tensor: Tensor, *, absolute: bool = False) -> tuple[Tensor, Tensor]:
    """Count the elements of a tensor in every bin.

    Args:
        tensor: real tensor of any shape, dtype and layout; not changed.
        absolute: count absolute values.

    Returns:
        The counts, int64, shape `[N_BINS]`, and the number of elements that are inf or NaN after rounding to bfloat16,
        int64, shape `[]`.
    """
    raw = torch.zeros(2 * _MAGNITUDES, dtype=torch.int64, device=tensor.device)
    for chunk in torch.split(tensor.detach().reshape(-1), _CHUNK):
        bits = (chunk.abs() if absolute else chunk).to(torch.bfloat16).view(torch.int16)
        # bincount wants non-negative int32 or int64 input and is fastest on int32.
        raw += torch.bincount(bits.to(torch.int32) + _MAGNITUDES, minlength=2 * _MAGNITUDES)
    # As int16 the negative numbers come first, in ascending order of magnitude: turn them round.
    negative, positive = raw[:_MAGNITUDES], raw[_MAGNITUDES:]
    finite = _MAGNITUDES - _NON_FINITE
    counts = torch.cat([negative[:finite].flip(0), positive[:finite]])
    return counts, negative[finite:].sum() + positive[finite:].sum()
