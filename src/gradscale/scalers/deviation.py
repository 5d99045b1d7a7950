"""MDA, the median of the deviation to the average (SGG paper, arXiv 2506.01049, equations 5 and 6), from histograms."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.scalers.occupied import Occupied

_SIGNIFICANT_BITS = 12  # to which deviations of all parameters are rounded
_DROPPED = 24 - _SIGNIFICANT_BITS  # of float32's
_FLOAT32_MAX = torch.finfo(torch.float32).max
_LARGEST = (0x7F800000 >> _DROPPED) - 1  # the largest finite number of so many bits


def cluster_mda(layers: Occupied, edges: Tensor) -> Tensor:
    """Median over each cluster's elements of the absolute deviation from the layer's mean, of the values of their bins.

        D[l, c] = median over i in c of |m_i - mean(m_l)|

    Args:
        layers: L layers.
        edges: int64 `[L, K + 1]`, see `Clusters`.

    Returns:
        float64 `[L, K]`; 0 for clusters without elements.
    """
    first, last = edges[:, :-1], edges[:, 1:]
    size = layers.below.gather(1, edges).diff(dim=1)
    ranks = torch.stack([(size - 1).clamp(min=0) // 2, size // 2], dim=1)  # the middle two, or twice the middle one
    middle = _order_statistics(layers, first[:, None], last[:, None], ranks)
    return torch.where(size > 0, middle.sum(dim=1) / 2, 0.0)


def _order_statistics(layers: Occupied, first: Tensor, last: Tensor, ranks: Tensor) -> Tensor:
    """Deviations of given rank (from 0) in bins `first` to `last - 1`, float64 `[L, R, K]`.

    On either side of the mean deviations ascend away from it, so both sides are bisected for their nearest bin within
    whose distance there are enough elements; the nearer of the two is the one.
    """
    deviations = layers.deviations
    split = torch.searchsorted(deviations, torch.zeros_like(deviations[:, :1]))[:, :, None]  # the first above the mean
    split = torch.clamp(split, first, last)
    # Steps away from the mean, to the right and to the left, `[L, 2, R, K]`.
    steps = torch.stack([last - split, split - first], dim=1).expand(-1, 2, *ranks.shape[1:])
    sign = torch.tensor([1, -1], device=split.device)[:, None, None]
    start = torch.stack([split, split - 1], dim=1)
    ranks, first, last = ranks[:, None], first[:, None], last[:, None]

    def look_up(table: Tensor, at: Tensor) -> Tensor:
        return table.gather(1, at.flatten(1)).view(at.shape)

    def distance(step: Tensor) -> Tensor:
        return look_up(deviations, (start + sign * step).clamp_(0, deviations.shape[1] - 1)).abs_()

    low, high = torch.zeros_like(steps), steps  # the first step that reaches far enough; `steps` where none does
    for _ in range(int(steps.max()).bit_length()):
        step = (low + high) // 2
        far = distance(step)
        upper = torch.searchsorted(deviations, far.flatten(1), right=True).view(far.shape)
        lower = torch.searchsorted(deviations, far.neg().flatten(1)).view(far.shape)
        within = look_up(layers.below, torch.clamp(upper, first, last)) - look_up(
            layers.below, torch.clamp(lower, first, last)
        )
        enough = within > ranks
        high = torch.where(enough, torch.minimum(step, high), high)
        low = torch.where(enough, low, torch.minimum(step + 1, high))
    return torch.where(high < steps, distance(high), torch.inf).amin(dim=1)


class ParameterDeviations:
    """Absolute deviations of all parameters from their layers' means, for their median.

    They are counted by their value rounded to 12 significant bits, in 2^19 bins (4 MB) however many layers there are:
    the median is within 2^-12 of the exact one of the bins' values (relatively; absolutely within 2^-138 below 2^-126).
    The counts are integers: their order does not matter.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with no parameters."""
        self._counts = torch.zeros(_LARGEST + 1, dtype=torch.int64, device=device)

    def add(self, layers: Occupied) -> None:
        """Count the deviations of all elements of some layers."""
        deviation = layers.deviations.abs().clamp(max=_FLOAT32_MAX).to(torch.float32)
        # Non-negative floats are ordered like their bit patterns.
        place = (deviation.view(torch.int32) + (1 << _DROPPED - 1) >> _DROPPED).clamp(max=_LARGEST)
        self._counts.scatter_add_(0, place.flatten().to(torch.int64), layers.counts.flatten())

    def median(self) -> float:
        """Median over all elements so far, of which there must be one; the mean of the middle two of an even number."""
        up_to = self._counts.cumsum(dim=0)
        number = up_to[-1:]
        middle = torch.cat([(number - 1) // 2, number // 2])
        places = torch.searchsorted(up_to, middle, right=True).to(torch.int32)
        return float((places << _DROPPED).view(torch.float32).to(torch.float64).mean())
