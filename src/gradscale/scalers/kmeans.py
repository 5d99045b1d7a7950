"""Deterministic one-dimensional k-means on histograms, for many layers at once.

In one dimension clusters are intervals. A dynamic programme over a few hundred candidate cuts finds the best partition
among them (the exact optimum where a layer occupies no more than 128 bins), and Lloyd's iterations on the full
histogram move its cuts to a fixed point. Prefix sums make one iteration O(K log N_BINS) per layer, whatever the number
of elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.scalers.histogram import N_BINS, ZERO_EDGE, bin_values

# Candidate cuts by four rules, because each alone is blind somewhere: even in occupied bins (so even in log magnitude),
# even in number of elements, even in the density of an optimal quantizer (Panter and Dite, 1951), and around each of
# the outermost occupied bins (single outliers of heavy tails).
_CUTS_BY_BIN, _CUTS_BY_COUNT, _CUTS_BY_DENSITY, _CUTS_PER_TAIL = 128, 32, 32, 32
_MAX_LLOYD_ITERATIONS = 300
_LAYERS_PER_CHUNK = 16  # bounds the temporary memory (about 4 MB per layer)


@dataclass(frozen=True)
class Clusters:
    """Clusters of L layers, ascending by centroid; clusters without elements come last.

    Attributes:
        centroids: float64 `[L, K]`, mean of each cluster; +inf where a cluster has no elements.
        boundaries: float32 `[L, K - 1]`; an element belongs to cluster c when exactly c boundaries are below it.
        edges: int64 `[L, K + 1]`, the bins `edges[c]` to `edges[c + 1] - 1` form cluster c.
    """

    centroids: Tensor
    boundaries: Tensor
    edges: Tensor


def cluster_histograms(counts: Tensor, n_clusters: int) -> Clusters:
    """Cluster each row of a batch of histograms.

    Args:
        counts: integers `[L, N_BINS]`; every row has at least one element.
        n_clusters: K.
    """
    parts = [_cluster_chunk(chunk, n_clusters) for chunk in torch.split(counts, _LAYERS_PER_CHUNK)]
    return Clusters(
        centroids=torch.cat([part.centroids for part in parts]),
        boundaries=torch.cat([part.boundaries for part in parts]),
        edges=torch.cat([part.edges for part in parts]),
    )


def _cluster_chunk(counts: Tensor, n_clusters: int) -> Clusters:
    values = bin_values(counts.device)
    weights = counts.to(torch.float64)
    number = _sums_from_zero(weights)
    total = _sums_from_zero(weights * values)
    if n_clusters == 1:
        edges = torch.tensor([[0, N_BINS]], device=counts.device).expand(len(counts), 2)
    else:
        edges = _best_partition(counts, weights, values, number, total, n_clusters)
    for _ in range(_MAX_LLOYD_ITERATIONS):
        centroids = _centroids(edges, number, total)
        # The boundary is rounded to float32 once, so that histograms and elements are cut at the same number.
        boundaries = ((centroids[:, 1:] + centroids[:, :-1]) / 2).to(torch.float32)
        cuts = torch.searchsorted(values, boundaries.to(torch.float64), right=True)
        moved = torch.cat([edges[:, :1], cuts, torch.full_like(edges[:, :1], N_BINS)], dim=1)
        if torch.equal(moved, edges):
            break
        edges = moved
    return Clusters(centroids=_centroids(edges, number, total), boundaries=boundaries, edges=edges)


def _centroids(edges: Tensor, number: Tensor, total: Tensor) -> Tensor:
    """Means of the clusters `[L, K]`, ascending; +inf for clusters without elements, which so come last."""
    count = number.gather(1, edges).diff(dim=1)
    mean = total.gather(1, edges).diff(dim=1) / count
    return torch.where(count > 0, mean, math.inf).sort(dim=1).values


def _sums_from_zero(weights: Tensor) -> Tensor:
    """Sums of `weights` from the bin edge at zero to every bin edge, `[L, N_BINS + 1]`.

    Any range is the difference of two of them. Counting from zero outwards keeps small magnitudes exact beside huge
    ones: sums from the left would lose a cluster near zero as soon as there is one large negative outlier.
    """
    above = weights[:, ZERO_EDGE:].cumsum(dim=1)
    below = weights[:, :ZERO_EDGE].flip(1).cumsum(dim=1).flip(1)
    return torch.cat([-below, torch.zeros_like(weights[:, :1]), above], dim=1)


def _best_partition(
    counts: Tensor, weights: Tensor, values: Tensor, number: Tensor, total: Tensor, n_clusters: int
) -> Tensor:
    """Edges `[L, K + 1]` of the partition with the least within-cluster sum of squares among the candidate cuts."""
    occupied = _with_leading_zero((counts > 0).cumsum(dim=1))
    cuts = _candidate_cuts(occupied, counts, weights, values)
    count, mean_sum, occupancy = number.gather(1, cuts), total.gather(1, cuts), occupied.gather(1, cuts)
    squares = _sums_from_zero(weights * values.square()).gather(1, cuts)

    def between(sums: Tensor) -> Tensor:  # [L, from, to]
        return sums[:, None, :] - sums[:, :, None]

    # Sum of squares about the mean; exactly zero for a single bin, where rounding would leave noise.
    cost = (between(squares) - between(mean_sum).square() / between(count).clamp(min=1)).clamp(min=0)
    cost = torch.where(between(occupancy) > 1, cost, 0.0)
    backwards = torch.ones(cuts.shape[1], cuts.shape[1], dtype=torch.bool, device=cuts.device).tril(-1)
    cost = cost.masked_fill(backwards, math.inf)

    best = cost[:, 0]  # least cost of one cluster from the first cut to each
    choices = []
    for _ in range(n_clusters - 1):
        best, choice = (best[:, :, None] + cost).min(dim=1)
        choices.append(choice)
    ends = [torch.full_like(cuts[:, :1], cuts.shape[1] - 1)]
    for choice in reversed(choices):
        ends.append(choice.gather(1, ends[-1]))
    first = torch.zeros_like(ends[0])
    return cuts.gather(1, torch.cat([first, *reversed(ends)], dim=1))


def _candidate_cuts(occupied: Tensor, counts: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    """Bin edges `[L, M]`, ascending, the first at 0 and the last at N_BINS."""
    width = values.diff(append=2 * values[-1:] - values[-2:-1])
    density = _with_leading_zero((weights.pow(1 / 3) * width.pow(2 / 3)).cumsum(dim=1))
    number = _with_leading_zero(counts.cumsum(dim=1))
    tail = torch.arange(_CUTS_PER_TAIL + 1, device=counts.device)
    shares = torch.linspace(0, 1, _CUTS_BY_DENSITY + 1, dtype=density.dtype, device=counts.device)
    last_bin = occupied[:, -1:]
    cuts = [
        torch.searchsorted(occupied, _even(last_bin, _CUTS_BY_BIN)),
        torch.searchsorted(number, _even(number[:, -1:], _CUTS_BY_COUNT)),
        torch.searchsorted(density, density[:, -1:] * shares),
        torch.searchsorted(occupied, torch.minimum(tail, last_bin)),
        torch.searchsorted(occupied, (last_bin - tail).clamp(min=0)),
        torch.zeros_like(occupied[:, :1]),
        torch.full_like(occupied[:, :1], N_BINS),
    ]
    return torch.cat(cuts, dim=1).clamp(max=N_BINS).sort(dim=1).values


def _even(last: Tensor, parts: int) -> Tensor:
    """Integers `[L, parts + 1]` from 0 to `last` (int64 `[L, 1]`) in even steps."""
    return last * torch.arange(parts + 1, device=last.device) // parts


def _with_leading_zero(sums: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1)
