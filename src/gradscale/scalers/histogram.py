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
_NARROW = 2.0  # a mean above so many standard deviations: a bin is then over 1 % of the standard deviation
_LARGEST = torch.finfo(torch.bfloat16).max
_CHUNK = 1 << 22  # elements in one pass; bounds the temporary memory (10 bytes per element of a chunk)


@functools.lru_cache(maxsize=8)
def bin_values(device: torch.device) -> Tensor:
    """Return the value of every bin: float64, shape `[N_BINS]`, ascending."""
    patterns = torch.arange(_MAGNITUDES - _NON_FINITE, dtype=torch.int16, device=device)
    positive = patterns.view(torch.bfloat16).to(torch.float64)
    return torch.cat([-positive.flip(0), positive])


def count_values(tensor: Tensor, *, absolute: bool = False, center: float = 0.0) -> tuple[Tensor, Tensor]:
    """Count the elements of a tensor in every bin.

    Args:
        tensor: real tensor of any shape, dtype and layout; not changed.
        absolute: count absolute values.
        center: count differences from this number (of the absolute values, if both are given). The grid is fine only
            around zero; see `center_of`.

    Returns:
        The counts, int64, shape `[N_BINS]`, and the number of elements that are inf or NaN, int64, shape `[]`. Finite
        numbers beyond bfloat16's range are counted in the outermost bins.
    """
    counts, beyond = _count(tensor, absolute=absolute, center=center, clamp=False)
    if beyond > 0:  # rare: the usual pass does not look for what is merely large
        counts, beyond = _count(tensor, absolute=absolute, center=center, clamp=True)
    return counts, beyond


def _count(tensor: Tensor, *, absolute: bool, center: float, clamp: bool) -> tuple[Tensor, Tensor]:
    raw = torch.zeros(2 * _MAGNITUDES, dtype=torch.int64, device=tensor.device)
    for chunk in torch.split(tensor.detach().reshape(-1), _CHUNK):
        key = chunk.abs() if absolute else chunk
        if center != 0:
            key = key.to(torch.float64) - center
        if clamp:
            key = torch.where(key.isinf(), key, key.clamp(-_LARGEST, _LARGEST))
        bits = key.to(torch.bfloat16).view(torch.int16)
        # bincount wants non-negative int32 or int64 input and is fastest on int32.
        raw += torch.bincount(bits.to(torch.int32) + _MAGNITUDES, minlength=2 * _MAGNITUDES)
    # As int16 the negative numbers come first, in ascending order of magnitude: turn them round.
    negative, positive = raw[:_MAGNITUDES], raw[_MAGNITUDES:]
    finite = _MAGNITUDES - _NON_FINITE
    counts = torch.cat([negative[:finite].flip(0), positive[:finite]])
    return counts, negative[finite:].sum() + positive[finite:].sum()


def center_of(counts: Tensor) -> Tensor:
    """Where a layer should be centred to be counted again, float64 `[L]`: 0 where its bins are fine enough.

    Bins are as wide as 1/128 of a number's distance from zero. Of values that are narrow beside their mean they see
    little (of values that differ by less than that, nothing), so such a layer is counted once more around its mean.

    Args:
        counts: integers `[L, N_BINS]`; every row has at least one element.
    """
    values = bin_values(counts.device)
    weights = counts.to(torch.float64)
    number = weights.sum(dim=1)
    # Sums along a row one after the other: the same on any number of threads.
    mean = (weights * values).cumsum(dim=1)[:, -1] / number
    spread = ((weights * (values - mean[:, None]).square()).cumsum(dim=1)[:, -1] / number).sqrt()
    return torch.where(mean.abs() > _NARROW * spread, mean, 0.0)
