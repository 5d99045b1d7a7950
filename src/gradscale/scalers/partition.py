"""The best partition of layers into intervals, among a few hundred candidate cuts: a dynamic programme.

A first programme over every eighth cut bounds the best partition from both sides. The second one tries all cuts, but
only in the stretch where each cut can be: what is left out costs more than a partition that is known.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_COARSE = 8
_ROUNDING = 1e-12  # of the sum of squares: far more than a sum's rounding error


@dataclass(frozen=True)
class Ranges:
    """Sums up to each of C cuts in L layers, and what follows from them for the ranges between two cuts.

    Attributes:
        cuts: float64 `[L, C]`, ascending: columns of occupied bins.
        number: float64 `[L, C]`, elements before each cut.
        total: float64 `[L, C]`, sum of the elements from zero to each cut.
        squares: float64 `[L, C]`, sum of their squares.
    """

    cuts: Tensor
    number: Tensor
    total: Tensor
    squares: Tensor

    def cost(self, begin: Tensor, end: Tensor) -> Tensor:
        """Sum of squares about the mean of what lies between two cuts.

        Args:
            begin: int64 `[L, X, 1]`, positions among the cuts.
            end: int64 `[L, 1, Y]`. The cost of what ends before it begins has no meaning.

        Returns:
            float64 `[L, X, Y]`.
        """
        count = _at(self.number, end) - _at(self.number, begin)
        of_mean = (_at(self.total, end) - _at(self.total, begin)).square_().div_(count.clamp_(min=1))
        cost = (_at(self.squares, end) - _at(self.squares, begin)).sub_(of_mean).clamp_(min=0)
        # Exactly zero for a single bin, where rounding would leave noise.
        return cost.mul_((_at(self.cuts, end) - _at(self.cuts, begin)).sub_(1).clamp_(0, 1))


def best_partition(ranges: Ranges, n_clusters: int) -> Tensor:
    """Return positions among the cuts, `[L, K + 1]`: the partition with the least sum of squares about its means.

    Args:
        ranges: L layers.
        n_clusters: K, at least 2.
    """
    first = torch.zeros_like(ranges.cuts[:, :1], dtype=torch.int64)
    last = first + ranges.cuts.shape[1] - 1
    least = torch.zeros_like(ranges.cuts[:, :1])  # cost of all clusters up to each position
    steps = []
    begins = first
    for ends in (*_windows(ranges, n_clusters), last):
        cost = ranges.cost(begins[:, :, None], ends[:, None, :]).add_(least[:, :, None])
        least, choice = cost.masked_fill_(begins[:, :, None] > ends[:, None, :], math.inf).min(dim=1)
        steps.append((begins, choice))
        begins = ends
    chosen, at = [last], first
    for begins, choice in reversed(steps):
        at = choice.gather(1, at)
        chosen.append(begins.gather(1, at))
    return torch.cat(chosen[::-1], dim=1)


def _windows(ranges: Ranges, n_clusters: int) -> list[Tensor]:
    """Where each of the K - 1 inner cuts of the best partition can be: positions `[L, W]`."""
    layers, n_cuts = ranges.cuts.shape
    device = ranges.cuts.device
    coarse = torch.cat([torch.arange(0, n_cuts - 1, _COARSE, device=device), torch.tensor([n_cuts - 1], device=device)])
    each = coarse.expand(layers, -1)
    costs = ranges.cost(each[:, :, None], each[:, None, :]).add_(_backwards(len(coarse), device))
    before, after = [costs[:, 0]], [costs[:, :, -1]]  # no more than 1, 2, ... clusters before and after each cut cost
    known = costs[:, 0]  # what as many clusters before each cut cost at most
    for _ in range(n_clusters - 2):
        known = (known[:, :, None] + costs).amin(dim=1)
        # Somewhere between two coarse cuts one cluster ends and the next begins: that stretch may cost nothing.
        before.append(_zero_at(0, (before[-1][:, :-1, None] + costs[:, 1:]).amin(dim=1)))
        after.append(_zero_at(-1, (costs[:, :, :-1] + after[-1][:, None, 1:]).amin(dim=2)))
    bound = (known + costs[:, :, -1]).amin(dim=1, keepdim=True)
    bound += _ROUNDING * (ranges.squares[:, -1:] - ranges.squares[:, :1])
    positions = torch.arange(n_cuts, device=device)
    result = []
    for left, right in zip(before, reversed(after), strict=True):
        between = left[:, :-1] + right[:, 1:] <= bound  # whether the cut can be between two coarse ones
        possible = between[:, (positions // _COARSE).clamp(max=len(coarse) - 2)]
        possible |= between[:, (positions - 1).clamp(min=0) // _COARSE]
        some = torch.where(possible, positions, n_cuts).sort(dim=1).values[:, : int(possible.sum(dim=1).max())]
        result.append(torch.where(some < n_cuts, some, some[:, :1]))
    return result


def _zero_at(place: int, costs: Tensor) -> Tensor:
    costs[:, place] = 0
    return costs


@functools.lru_cache(maxsize=8)
def _backwards(cuts: int, device: torch.device) -> Tensor:
    """`[begin, end]`: +inf where the end is before the begin, else 0."""
    return torch.full((cuts, cuts), math.inf, dtype=torch.float64, device=device).tril(-1)


def _at(table: Tensor, positions: Tensor) -> Tensor:
    """Look positions `[L, ...]` up in the rows of a table `[L, C]`."""
    return table.gather(1, positions.flatten(1)).view(positions.shape)
