"""Histograms without their empty bins.

Of the 65,280 bins a layer occupies some thousands, and all statistics read these alone. A batch of layers is a table:
in each row one occupied bin after the other, those of negative numbers up to the column `zero` and those of positive
ones from there on, with empty columns before and after them where other layers have more.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradscale.scalers.histogram import N_BINS, ZERO_EDGE, bin_values

_BEYOND = 1e150  # value of empty columns: larger than every number, with a finite square
_NARROW = 2.0  # a mean above so many standard deviations: a bin is then over 1 % of the standard deviation


@dataclass(frozen=True)
class Occupied:
    """Occupied bins of L layers in M columns.

    Sums run along a row, one bin after the other: the same on any number of threads, and whatever the layers beside.

    Attributes:
        places: int64 `[L, M]`, ascending: 1 + the bin; 0 in empty columns before, N_BINS + 1 in those after.
        counts: int64 `[L, M]`, elements per bin; 0 in empty columns.
        first: int64 `[L, 1]`, the first column with a bin.
        last: int64 `[L, 1]`, the one after the last.
        zero: the first column of positive numbers.
    """

    places: Tensor
    counts: Tensor
    first: Tensor
    last: Tensor
    zero: int

    @classmethod
    def of(cls, counts: Tensor) -> Occupied:
        """Find the occupied bins of integer histograms `[L, N_BINS]`."""
        words = counts.to(torch.bool).flatten().view(torch.int64)
        word = words.nonzero().flatten()
        byte = words[word].view(torch.bool).nonzero().flatten()
        # Where in the flattened counts each occupied bin is, and where among these each row begins, and its zero edge.
        occupied = word.index_select(0, byte >> 3) * 8 + (byte & 7)
        rows = torch.arange(len(counts) + 1, device=counts.device)[:, None] * N_BINS
        begins, zeros = torch.searchsorted(occupied, torch.cat([rows, rows + ZERO_EDGE], dim=1)).T[..., None]
        negative, positive = (zeros - begins)[:-1], begins[1:] - zeros[:-1]
        zero, above = torch.cat([negative, positive], dim=1).amax(dim=0).tolist()
        column = torch.arange(max(1, zero + above), device=counts.device)
        first, last = zero - negative, zero + positive
        before, after = column < first, column >= last
        empty = before | after
        at = (begins[:-1] - first + column).masked_fill_(empty, 0)
        bins = occupied.index_select(0, at.flatten()).view(at.shape).sub_(rows[:-1]) if len(occupied) else at
        kept = counts.gather(1, bins.masked_fill_(empty, 0)).to(torch.int64).masked_fill_(empty, 0)
        places = bins.add_(1).masked_fill_(before, 0).masked_fill_(after, N_BINS + 1)
        return cls(places, kept, first, last, zero)

    def __getitem__(self, rows: Tensor) -> Occupied:
        """Return some of the layers."""
        return Occupied(self.places[rows], self.counts[rows], self.first[rows], self.last[rows], self.zero)

    @cached_property
    def values(self) -> Tensor:
        """Value of each bin, float64 `[L, M]`, ascending from the first to the last column."""
        return _values(self.places.device).take(self.places)

    @cached_property
    def weights(self) -> Tensor:
        """Counts in float64."""
        return self.counts.to(torch.float64)

    @cached_property
    def weighted_values(self) -> Tensor:
        """Sum of each bin's elements, float64 `[L, M]`."""
        return self.weights * self.values

    @cached_property
    def below(self) -> Tensor:
        """Number of elements before each column, and of all, int64 `[L, M + 1]`."""
        return with_leading_zero(self.counts.cumsum(dim=1))

    @cached_property
    def mean(self) -> Tensor:
        """Mean of each layer, float64 `[L]`; NaN for layers without elements."""
        return self.weighted_values.cumsum(dim=1)[:, -1] / self.below[:, -1]

    @cached_property
    def deviations(self) -> Tensor:
        """Difference of each bin's value from the layer's mean, float64 `[L, M]`, ascending."""
        return self.values - self.mean[:, None]

    @cached_property
    def is_zero(self) -> Tensor:
        """Whether all elements of a layer are 0 (or -0), bool `[L]`. So it is where there are no elements."""
        return ~(self.weighted_values != 0).any(dim=1)

    def center(self) -> Tensor:
        """Where a layer should be centred to be counted again, float64 `[L]`: 0 where its bins are fine enough.

        Bins are as wide as 1/128 of a number's distance from zero. Of values that are narrow beside their mean they see
        little (of values that differ by less than that, nothing), so such a layer is counted once more around its mean.
        """
        squares = (self.weights * self.deviations.square()).cumsum(dim=1)[:, -1]
        spread = (squares / self.below[:, -1]).sqrt()
        return torch.where(self.mean.abs() > _NARROW * spread, self.mean, 0.0)

    def sums_from_zero(self, per_bin: Tensor) -> Tensor:
        """Sums of `[L, M]` from the edge between negative and positive numbers to every column, `[L, M + 1]`.

        Any range is the difference of two of them. Counting from zero outwards keeps small magnitudes exact beside huge
        ones: sums from the left would lose a cluster near zero as soon as there is one large negative outlier.
        """
        sums = per_bin.new_zeros(len(per_bin), per_bin.shape[1] + 1)
        torch.cumsum(per_bin[:, self.zero :], dim=1, out=sums[:, self.zero + 1 :])
        sums[:, : self.zero] = per_bin[:, : self.zero].flip(1).cumsum(dim=1).neg_().flip(1)
        return sums


def with_leading_zero(sums: Tensor) -> Tensor:
    """Return `[L, M]` with a column of zeros before it."""
    return torch.nn.functional.pad(sums, (1, 0))


@functools.lru_cache(maxsize=8)
def _values(device: torch.device) -> Tensor:
    """Value of each place, float64 `[N_BINS + 2]`."""
    beyond = torch.tensor([_BEYOND], dtype=torch.float64, device=device)
    return torch.cat([-beyond, bin_values(device), beyond])
