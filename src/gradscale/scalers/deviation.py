"""MDA, the median of the deviation to the average (SGG paper, arXiv 2506.01049, equations 5 and 6), from histograms.

Every function reads the number of elements below each bin edge, so a median is a bisection over the deviation: the
number of elements within a distance t of the mean is a difference of two look-ups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradscale.scalers.histogram import bin_values

_BISECTIONS = 63  # bits of a non-negative float64


def elements_below(counts: Tensor) -> Tensor:
    """Number of elements below every bin edge, int64 `[L, N_BINS + 1]`, from counts `[L, N_BINS]`."""
    return torch.nn.functional.pad(counts.cumsum(dim=1), (1, 0))


def layer_mean(counts: Tensor) -> Tensor:
    """Mean of each layer, float64 `[L]`, from counts `[L, N_BINS]` (at least one element per layer)."""
    weights = counts.to(torch.float64)
    # Sums along a row one after the other: the same on any number of threads.
    return (weights * bin_values(counts.device)).cumsum(dim=1)[:, -1] / weights.sum(dim=1)


def cluster_mda(below: Tensor, mean: Tensor, edges: Tensor) -> Tensor:
    """Median over each cluster's elements of the absolute deviation from the layer's mean.

        D[l, c] = median over i in c of |m_i - mean(m_l)|

    Args:
        below: int64 `[L, N_BINS + 1]`, see `elements_below`.
        mean: float64 `[L]`.
        edges: int64 `[L, K + 1]`, see `Clusters`.

    Returns:
        float64 `[L, K]`; 0 for clusters without elements.
    """
    first, last = edges[:, :-1], edges[:, 1:]
    size = below.gather(1, last) - below.gather(1, first)

    def within(distance: Tensor) -> Tensor:
        lower, upper = _bin_range(mean[:, None], distance)
        upper = torch.minimum(torch.maximum(upper, first), last)
        lower = torch.minimum(torch.maximum(lower, first), upper)
        return below.gather(1, upper) - below.gather(1, lower)

    return torch.where(size > 0, _median(size, within), 0.0)


def parameter_mda(below: Tensor, mean: Tensor) -> Tensor:
    """Median over all elements of all layers of the absolute deviation from their layer's mean, float64 `[]`.

    Args:
        below: int64 `[L, N_BINS + 1]`, see `elements_below`.
        mean: float64 `[L]`.
    """

    def within(distance: Tensor) -> Tensor:
        lower, upper = (bins.unsqueeze(1) for bins in _bin_range(mean, distance.expand_as(mean)))
        return (below.gather(1, upper) - below.gather(1, lower)).sum()

    return _median(below[:, -1].sum(), within)


def _bin_range(center: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """First bin, and the one after the last, whose value lies within `distance` of `center`."""
    values = bin_values(distance.device)
    lower = torch.searchsorted(values, (center - distance).contiguous())
    upper = torch.searchsorted(values, (center + distance).contiguous(), right=True)
    return lower, upper


def _median(size: Tensor, within: Callable[[Tensor], Tensor]) -> Tensor:
    """Median of a set of non-negative numbers, the mean of the middle two where their number is even.

    Args:
        size: how many there are.
        within: how many are at most a given number.
    """
    lower = _order_statistic((size - 1).clamp(min=0) // 2, within)
    upper = _order_statistic(size // 2, within)
    return (lower + upper) / 2


def _order_statistic(rank: Tensor, within: Callable[[Tensor], Tensor]) -> Tensor:
    """The number of the given rank (from 0): the least float64 x with `within(x) > rank`.

    Non-negative floats are ordered like their bit patterns, so bisecting the pattern is exact and always ends.
    """
    low = torch.zeros_like(rank)
    high = torch.full_like(rank, torch.finfo(torch.float64).max, dtype=torch.float64).view(torch.int64)
    for _ in range(_BISECTIONS):
        middle = low + (high - low) // 2
        enough = within(middle.view(torch.float64)) > rank
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, torch.minimum(middle + 1, high))
    return high.view(torch.float64)
