"""Groupings and statistics that the paper compares with its own: not made to be fast.

Clusters of k-means are intervals. Those of a Gaussian mixture need not be (a wide component has both tails), nor is
DBSCAN's noise. Such a cluster is several intervals: of K clusters together at most 2 K - 1, as many as the upper
envelope of K parabolas has pieces, or as K - 1 intervals and the gaps around them. A layer then keeps 2 K - 2
boundaries, and which cluster each interval belongs to.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscale.scalers.kmeans import cluster_histograms
from gradscale.scalers.occupied import Occupied
from gradscale.scalers.sgg import Grouping
from gradscale.scalers.sklearn_groupings import Integers, labels_of_bins
from gradscale.scalers.statistics import cluster_means, cluster_statistic

IN_SEVERAL_INTERVALS = ("gmm", "dbscan")


def group_layers_otherwise(
    layers: Occupied, n_clusters: int, centers: Tensor, *, grouping: str, statistic: str
) -> Grouping:
    """Cluster the momentum of each layer by any method, and measure any statistic of the clusters. See `group_layers`.

    Args:
        layers: histograms of the L layers' momenta; every layer has at least one element.
        n_clusters: K.
        centers: float64 `[L]`, what was subtracted before counting.
        grouping: "kmeans", "layer", or a method of `labels_of_bins`.
        statistic: see `cluster_statistic`.

    Returns:
        The grouping, on the CPU.
    """
    # All on the CPU, where sums along a row are always the same: every rank must find the same numbers.
    first, last = layers.first.cpu(), layers.last.cpu()
    layers = Occupied(layers.places.cpu(), layers.counts.cpu(), first, last, layers.zero)
    centers = centers.cpu()
    clusters = cluster_histograms(layers, n_clusters)
    column = torch.arange(layers.places.shape[1])
    labels = (column >= clusters.edges[:, 1:-1, None]).sum(dim=1)
    boundaries, owners = clusters.boundaries, None
    if n_clusters > 1 and grouping not in ("kmeans", "layer"):
        several = grouping in IN_SEVERAL_INTERVALS
        intervals = 2 * n_clusters - 1 if several else n_clusters
        boundaries = torch.full((len(labels), intervals - 1), torch.inf)
        owners = torch.zeros(len(labels), intervals, dtype=torch.uint8)
        for row, (begin, end) in enumerate(zip(first[:, 0].tolist(), last[:, 0].tolist(), strict=True)):
            values, counts = layers.values[row, begin:end].numpy(), layers.counts[row, begin:end].numpy()
            start = labels[row, begin:end].numpy()
            found = labels_of_bins(grouping, values, counts, n_clusters, start)
            begins, of = as_intervals(found, counts, intervals)
            # Halfway between two bins: where elements are told apart that fall into one or the other.
            cuts = (values[begins[1:]] + values[begins[1:] - 1]) / 2
            boundaries[row, : len(cuts)] = torch.from_numpy(cuts.astype(np.float32))
            owners[row, : len(of)] = torch.from_numpy(of.astype(np.uint8))
            labels[row, begin:end] = torch.from_numpy(np.repeat(of, np.diff(begins, append=end - begin)))
        owners = owners if several else None
    sizes = torch.stack([(layers.counts * (labels == c)).sum(dim=1) for c in range(n_clusters)], dim=1)
    means = cluster_means(layers, labels, n_clusters) + centers[:, None]
    return Grouping(
        boundaries=(boundaries.to(torch.float64) + centers[:, None]).to(torch.float32),
        centroids=torch.where(sizes > 0, means, torch.inf),
        sizes=sizes,
        mda=cluster_statistic(statistic, layers, labels, n_clusters, centers),
        statistic=statistic,
        owners=owners,
    )


def as_intervals(labels: Integers, counts: Integers, most: int) -> tuple[NDArray[np.intp], Integers]:
    """Return where the runs of equal labels begin, and the label of each: no more runs than `most`.

    There are more only where rounding decides between clusters that are nearly the same. Then the run of the fewest
    elements joins the larger of its neighbours.

    Args:
        labels: `[M]`, in the order of the values.
        counts: `[M]`, elements with each label.
        most: how many runs there may be, at least 1.
    """
    labels = labels.copy()
    while True:
        begins = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
        if len(begins) <= most:
            return begins, labels[begins]
        sizes = np.add.reduceat(counts, begins)
        least = int(sizes.argmin())
        neighbours = [run for run in (least - 1, least + 1) if 0 <= run < len(begins)]
        into = max(neighbours, key=lambda run: sizes[run])
        end = begins[least + 1] if least + 1 < len(begins) else len(labels)
        labels[begins[least] : end] = labels[begins[into]]
