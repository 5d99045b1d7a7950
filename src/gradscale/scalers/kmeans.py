"""Deterministic one-dimensional k-means on histograms, for many layers at once.

In one dimension clusters are intervals. A dynamic programme over a few hundred candidate cuts finds the best partition
among them (the exact optimum where a layer occupies no more than 128 bins), and Lloyd's iterations on the full
histogram move its cuts to a fixed point. Prefix sums make one iteration O(K log M) per layer with M occupied bins,
whatever the number of elements.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.scalers.histogram import bin_values
from gradscale.scalers.occupied import Occupied, with_leading_zero
from gradscale.scalers.partition import Ranges, best_partition

# Candidate cuts by four rules, because each alone is blind somewhere: even in occupied bins (so even in log magnitude),
# even in number of elements, even in the density of an optimal quantizer (Panter and Dite, 1951), and around each of
# the outermost occupied bins (single outliers of heavy tails).
_CUTS_BY_BIN, _CUTS_BY_COUNT, _CUTS_BY_DENSITY, _CUTS_PER_TAIL = 128, 32, 32, 32
_LAYERS_AT_A_TIME = 8  # in the dynamic programme, whose effort for all of them is that for the most difficult one
_MAX_LLOYD_ITERATIONS = 300


@dataclass(frozen=True)
class Clusters:
    """Clusters of L layers, ascending by centroid; clusters without elements come last.

    Attributes:
        centroids: float64 `[L, K]`, mean of each cluster; +inf where a cluster has no elements.
        boundaries: float32 `[L, K - 1]`; an element belongs to cluster c when exactly c boundaries are below it.
        edges: int64 `[L, K + 1]`, the columns `edges[c]` to `edges[c + 1] - 1` form cluster c.
    """

    centroids: Tensor
    boundaries: Tensor
    edges: Tensor


def cluster_histograms(layers: Occupied, n_clusters: int) -> Clusters:
    """Cluster each of L layers, each with at least one element, into K = `n_clusters`."""
    total = layers.sums_from_zero(layers.weighted_values)
    if n_clusters == 1:
        edges = torch.cat([layers.first, layers.last], dim=1)
    else:
        squares = layers.sums_from_zero(layers.weights * layers.values.square())
        cuts = _candidate_cuts(layers)
        number = layers.below.gather(1, cuts)
        sums = (cuts.to(torch.float64), number.to(torch.float64), total.gather(1, cuts), squares.gather(1, cuts))
        parts = [
            best_partition(Ranges(*(each[begin : begin + _LAYERS_AT_A_TIME] for each in sums)), n_clusters)
            for begin in range(0, len(cuts), _LAYERS_AT_A_TIME)
        ]
        edges = cuts.gather(1, torch.cat(parts))
    return _lloyd(layers, edges, total)


def _lloyd(layers: Occupied, edges: Tensor, total: Tensor) -> Clusters:
    """Move edges `[L, K + 1]` to a fixed point."""
    values, first, last = layers.values, layers.first, layers.last
    for _ in range(_MAX_LLOYD_ITERATIONS):
        centroids = _centroids(edges, layers.below, total)
        # The boundary is rounded to float32 once, so that histograms and elements are cut at the same number.
        boundaries = ((centroids[:, 1:] + centroids[:, :-1]) / 2).to(torch.float32)
        cuts = torch.searchsorted(values, boundaries.to(torch.float64), right=True)
        moved = torch.cat([first, torch.clamp(cuts, first, last), last], dim=1)
        if torch.equal(moved, edges):
            break
        edges = moved
    return Clusters(centroids=_centroids(edges, layers.below, total), boundaries=boundaries, edges=edges)


def _centroids(edges: Tensor, below: Tensor, total: Tensor) -> Tensor:
    """Means of the clusters `[L, K]`, ascending; +inf for clusters without elements, which so come last."""
    count = below.gather(1, edges).diff(dim=1)
    mean = total.gather(1, edges).diff(dim=1) / count
    return torch.where(count > 0, mean, math.inf).sort(dim=1).values


def _candidate_cuts(layers: Occupied) -> Tensor:
    """Columns `[L, C]`, ascending, the first at a layer's first bin and the last after its last."""
    per_bin = layers.weights.pow(1 / 3) * _width_power(layers.places.device).take(layers.places)
    density = with_leading_zero(per_bin.cumsum(dim=1))
    number, first, last = layers.below, layers.first, layers.last
    tail = torch.arange(_CUTS_PER_TAIL + 1, device=last.device)
    shares = torch.linspace(0, 1, _CUTS_BY_DENSITY + 1, dtype=density.dtype, device=last.device)
    cuts = [
        first + _even(last - first, _CUTS_BY_BIN),
        torch.searchsorted(number, _even(number[:, -1:], _CUTS_BY_COUNT)),
        torch.searchsorted(density, density[:, -1:] * shares),
        first + tail,
        last - tail,
    ]
    return torch.cat(cuts, dim=1).clamp(first, last).sort(dim=1).values


@functools.lru_cache(maxsize=8)
def _width_power(device: torch.device) -> Tensor:
    """Width to the power of 2/3 of each place (see `Occupied`), float64 `[N_BINS + 2]`."""
    values = bin_values(device)
    width = values.diff(append=2 * values[-1:] - values[-2:-1])
    return torch.nn.functional.pad(width.pow(2 / 3), (1, 1))


def _even(last: Tensor, parts: int) -> Tensor:
    """Integers `[L, parts + 1]` from 0 to `last` (int64 `[L, 1]`) in even steps."""
    return last * torch.arange(parts + 1, device=last.device) // parts
