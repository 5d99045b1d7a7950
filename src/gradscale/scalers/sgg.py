"""SGG, scaling with gradient grouping (arXiv 2506.01049, Algorithm 1 and equations 5 to 7), as pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.scalers.deviation import cluster_mda, elements_below, layer_mean, parameter_mda
from gradscale.scalers.kmeans import cluster_histograms

# Added to a cluster's deviation in the ratio (equation 7), as a share of the global one where that is below 1:
# gradients of 1e-9 are common in large models, and an absolute 1e-8 would then decide the ratio alone.
_RATIO_EPS = 1e-8


@dataclass(frozen=True)
class Grouping:
    """Statistics of one grouping of L layers into K clusters.

    Attributes:
        boundaries: float32 `[L, K - 1]`; an element's label is the number of boundaries below it.
        centroids: float64 `[L, K]`, ascending; +inf for clusters without elements, which come last.
        sizes: int64 `[L, K]`, elements per cluster.
        mda: float64 `[L, K]`, median deviation of each cluster from its layer's mean.
        below: int64 `[L, N_BINS + 1]`, elements below each bin edge.
        mean: float64 `[L]`, layer means on the bins' axis, that is, less the centres.
    """

    boundaries: Tensor
    centroids: Tensor
    sizes: Tensor
    mda: Tensor
    below: Tensor
    mean: Tensor


def group_layers(counts: Tensor, n_clusters: int, centers: Tensor | None = None) -> Grouping:
    """Cluster the momentum of each layer and measure how far each cluster deviates.

    Args:
        counts: integers `[L, N_BINS]`, histograms of the layers' momenta; every layer has at least one element.
        n_clusters: K.
        centers: float64 `[L]`, what was subtracted before counting; None is 0.
    """
    clusters = cluster_histograms(counts, n_clusters)
    below, mean = elements_below(counts), layer_mean(counts)
    return Grouping(
        boundaries=clusters.boundaries if centers is None else _shifted(clusters.boundaries, centers),
        centroids=clusters.centroids if centers is None else clusters.centroids + centers[:, None],
        sizes=below.gather(1, clusters.edges).diff(dim=1),
        mda=cluster_mda(below, mean, clusters.edges),
        below=below,
        mean=mean,
    )


def _shifted(boundaries: Tensor, centers: Tensor) -> Tensor:
    return (boundaries.to(torch.float64) + centers[:, None]).to(torch.float32)


def mda_over_clusters(groupings: list[Grouping]) -> float:
    """Global MDA as the median of the MDAs of all clusters that have elements."""
    mdas = torch.cat([grouping.mda[grouping.sizes > 0] for grouping in groupings]).sort().values
    return float((mdas[(len(mdas) - 1) // 2] + mdas[len(mdas) // 2]) / 2)


def mda_over_parameters(groupings: list[Grouping]) -> float:
    """Global MDA as the median over all parameters of their deviation from their layer's mean."""
    below = torch.cat([grouping.below for grouping in groupings])
    return float(parameter_mda(below, torch.cat([grouping.mean for grouping in groupings])))


def update_scales(
    scales: Tensor,
    mda: Tensor,
    sizes: Tensor,
    *,
    global_mda: float,
    decay: float,
    bounds: tuple[float, float],
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

    Returns:
        New scales, float32 `[L, K]`.
    """
    if global_mda == 0:
        return scales.to(torch.float32)
    ratio = (global_mda / (mda + _RATIO_EPS * min(1.0, global_mda))).clamp(*bounds)
    moved = decay * scales.to(torch.float64) + (1 - decay) * ratio
    return torch.where(sizes > 0, moved, scales.to(torch.float64)).to(torch.float32)


def assign_labels(momentum: Tensor, boundaries: Tensor, *, absolute: bool = False) -> Tensor:
    """Label every element with its cluster: the number of boundaries below it.

    Args:
        momentum: any shape.
        boundaries: float32 `[K - 1]`, ascending.
        absolute: label by absolute value.

    Returns:
        uint8, shape of `momentum`.
    """
    key = momentum.abs() if absolute else momentum
    labels = torch.zeros_like(momentum, dtype=torch.uint8)
    for boundary in boundaries.tolist():
        if math.isfinite(boundary):
            labels += key > boundary
    return labels


def scale_factor(labels: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Learning-rate factor of every element, `scales[labels]`.

    Args:
        labels: uint8, any shape.
        scales: `[K]`.
        dtype: dtype of the result.
    """
    return scales.to(dtype).index_select(0, labels.reshape(-1).to(torch.int32)).view(labels.shape)
