"""SGG, scaling with gradient grouping (arXiv 2506.01049, Algorithm 1 and equations 5 to 7), as pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.scalers.deviation import cluster_mda
from gradscale.scalers.kmeans import cluster_histograms
from gradscale.scalers.occupied import Occupied
from gradscale.scalers.pieces import pieces

# Added to a cluster's deviation in the ratio (equation 7), as a share of the global one where that is below 1:
# gradients of 1e-9 are common in large models, and an absolute 1e-8 would then decide the ratio alone.
_RATIO_EPS = 1e-8
# Elements labelled at a time: on a CPU what fits into its cache, elsewhere what keeps it busy.
_PIECE_ON_CPU, _PIECE = 1 << 17, 1 << 24


@dataclass(frozen=True)
class Grouping:
    """Statistics of one grouping of L layers into K clusters.

    Attributes:
        boundaries: float32 `[L, K - 1]`; an element's label is the number of boundaries below it. With `owners`
            `[L, P - 1]`, and the label is the owner of so many an interval.
        centroids: float64 `[L, K]`, ascending; +inf for clusters without elements, which come last.
        sizes: int64 `[L, K]`, elements per cluster.
        mda: float64 `[L, K]`, median deviation of each cluster from its layer's mean, or what else `statistic` names.
        statistic: see `gradscale.scalers.statistics`.
        owners: uint8 `[L, P]`, the cluster of each interval, where clusters are several; None where each is one.
    """

    boundaries: Tensor
    centroids: Tensor
    sizes: Tensor
    mda: Tensor
    statistic: str = "mda"
    owners: Tensor | None = None

    def cpu(self) -> Grouping:
        """Return the same on the CPU."""
        owners = None if self.owners is None else self.owners.cpu()
        tensors = (self.boundaries.cpu(), self.centroids.cpu(), self.sizes.cpu(), self.mda.cpu())
        return Grouping(*tensors, self.statistic, owners)


def group_layers(layers: Occupied, n_clusters: int, centers: Tensor | None = None) -> Grouping:
    """Cluster the momentum of each layer and measure how far each cluster deviates.

    Args:
        layers: histograms of the L layers' momenta; every layer has at least one element.
        n_clusters: K.
        centers: float64 `[L]`, what was subtracted before counting; None is 0.
    """
    clusters = cluster_histograms(layers, n_clusters)
    return Grouping(
        boundaries=clusters.boundaries if centers is None else _shifted(clusters.boundaries, centers),
        centroids=clusters.centroids if centers is None else clusters.centroids + centers[:, None],
        sizes=layers.below.gather(1, clusters.edges).diff(dim=1),
        mda=cluster_mda(layers, clusters.edges),
    )


def _shifted(boundaries: Tensor, centers: Tensor) -> Tensor:
    return (boundaries.to(torch.float64) + centers[:, None]).to(torch.float32)


def mda_over_clusters(groupings: list[Grouping]) -> float:
    """Global MDA as the median of the MDAs of all clusters that have elements."""
    mdas = torch.cat([grouping.mda[grouping.sizes > 0] for grouping in groupings]).sort().values
    return float((mdas[(len(mdas) - 1) // 2] + mdas[len(mdas) // 2]) / 2)


def mda_of_layer(mda: Tensor, sizes: Tensor) -> float:
    """Return the D with which the ratios of a layer have a mean of 1 over its elements, before they are clamped.

        D[l] = N[l] / sum over c of N[l, c] / D[l, c]

    Clusters that are empty or do not deviate are left out.

    Args:
        mda: float64 `[K]`, D[l, c].
        sizes: int64 `[K]`, N[l, c], elements per cluster.
    """
    counted = (sizes > 0) & (mda > 0)
    if not counted.any():
        return 0.0
    return float(sizes[counted].sum() / (sizes[counted] / mda[counted]).sum())


def update_scales(
    scales: Tensor,
    mda: Tensor,
    sizes: Tensor,
    *,
    global_mda: float,
    decay: float,
    bounds: tuple[float, float],
    sign_only: bool = False,
) -> Tensor:
    """Move every cluster's scale towards the clamped ratio of the global deviation to its own.

        S[l, c] <- beta3 S[l, c] + (1 - beta3) clamp(D / (D[l, c] + 1e-8), low, high)

    Clusters that deviate less than the model does get larger steps. Clusters without elements keep their scale, and all
    do where the whole model does not deviate at all (D = 0), which says nothing about any cluster.

    Args:
        scales: `[L, K]`, not changed.
        mda: float64 `[L, K]`, D[l, c].
        sizes: int64 `[L, K]`, elements per cluster.
        global_mda: D.
        decay: beta3.
        bounds: lowest and highest ratio.
        sign_only: whether the ratio is the highest of all below D and the lowest of all above it.

    Returns:
        New scales, float32 `[L, K]`.
    """
    if global_mda == 0:
        return scales.to(torch.float32)
    if sign_only:
        ratio = torch.pow(torch.inf, (global_mda - mda).sign()).clamp(*bounds)
    else:
        ratio = (global_mda / (mda + _RATIO_EPS * min(1.0, global_mda))).clamp(*bounds)
    moved = decay * scales.to(torch.float64) + (1 - decay) * ratio
    return torch.where(sizes > 0, moved, scales.to(torch.float64)).to(torch.float32)


def assign_labels(momentum: Tensor, boundaries: Tensor, *, absolute: bool = False, out: Tensor | None = None) -> Tensor:
    """Label every element with its cluster: the number of boundaries below it, 0 for NaN.

    Args:
        momentum: any shape. Of 16-bit numbers the float32 value counts.
        boundaries: float32 `[K - 1]`, ascending.
        absolute: label by absolute value.
        out: where to write the labels, uint8, shape of `momentum`; None makes a new tensor.

    Returns:
        uint8, shape of `momentum`.
    """
    labels = torch.empty_like(momentum, dtype=torch.uint8) if out is None else out
    # Boundaries are float32: compared with 16-bit numbers as such, torch would round them first.
    dtype = torch.promote_types(momentum.dtype, torch.float32)
    size = min(max(1, momentum.numel()), _PIECE_ON_CPU if momentum.device.type == "cpu" else _PIECE)
    buffers = torch.empty(3, size, dtype=dtype, device=momentum.device)
    finite = [boundary for boundary in boundaries.tolist() if math.isfinite(boundary)]
    if not finite:
        return labels.zero_()
    for piece, into in pieces(size, momentum, labels):
        key, number, above = (buffer[: piece.numel()].view(piece.shape) for buffer in buffers)
        if absolute:
            torch.abs(piece.to(dtype), out=key)
        else:
            key = piece.to(dtype)
        # In floating point, and converted at the end by way of int8: both are several times as fast as bool and uint8.
        torch.gt(key, finite[0], out=number)
        for boundary in finite[1:]:
            number += torch.gt(key, boundary, out=above)
        into.view(torch.int8).copy_(number)
    return labels
