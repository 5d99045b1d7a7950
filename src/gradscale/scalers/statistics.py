"""What of a cluster is compared with the model's (SGG paper, arXiv 2506.01049, Table 2), from histograms.

With x_i the momentum (or its absolute value), c a cluster of layer l, n its elements:

    mda             median over i in c of |x_i - mean(x_l)|             equations 5 and 6
    mean            |1/n sum over i in c of x_i|
    variance        1/n sum over i in c of (x_i - mean(x_c))^2
    variance_sign   the variance; of its comparison with the model's only the sign counts
    l2              sqrt(1/n sum over i in c of x_i^2)
    mad             median over i in c of |x_i - median(x_c)|

The paper has names for all but the first. The L2 norm is taken per element here, or a scale would depend on how large
a cluster is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.scalers.occupied import Occupied


def cluster_statistic(
    statistic: str, layers: Occupied, labels: Tensor, n_clusters: int, centers: Tensor | None
) -> Tensor:
    """Return a statistic of every cluster, float64 `[L, K]`; 0 for clusters without elements.

    Args:
        statistic: its name.
        layers: L layers, on the CPU.
        labels: int64 `[L, M]`, the cluster of every bin.
        n_clusters: K.
        centers: float64 `[L]`, what was subtracted before counting; None is 0.
    """
    shift = torch.zeros(len(labels), dtype=torch.float64) if centers is None else centers
    found = [_of_one(statistic, layers, layers.counts * (labels == c), shift) for c in range(n_clusters)]
    return torch.stack(found, dim=1)


def cluster_means(layers: Occupied, labels: Tensor, n_clusters: int) -> Tensor:
    """Return the mean of every cluster, float64 `[L, K]`; NaN for clusters without elements. Args: see above."""
    counts = [(layers.counts * (labels == c)).to(torch.float64) for c in range(n_clusters)]
    return torch.stack([_total(each * layers.values) / each.sum(dim=1) for each in counts], dim=1)


def _of_one(statistic: str, layers: Occupied, counts: Tensor, shift: Tensor) -> Tensor:
    """Statistic `[L]` of the elements that `counts` `[L, M]` has."""
    values, size = layers.values, counts.sum(dim=1)
    weights = counts.to(torch.float64) / size.clamp(min=1)[:, None]
    mean = _total(weights * values)
    if statistic == "mda":
        found = _median(layers.deviations.abs(), counts)
    elif statistic == "mad":
        found = _median((values - _median(values, counts)[:, None]).abs(), counts)
    elif statistic == "mean":
        found = (mean + shift).abs()
    elif statistic == "l2":
        found = _total(weights * (values + shift[:, None]).square()).sqrt()
    else:
        found = _total(weights * (values - mean[:, None]).square())
    return torch.where(size > 0, found, 0.0)


def _total(values: Tensor) -> Tensor:
    """Sums `[L]` along rows, one number after the other: the same whatever other rows make this one longer."""
    return values.cumsum(dim=1)[:, -1]


def _median(values: Tensor, counts: Tensor) -> Tensor:
    """Return medians of rows, the mean of the middle two where a number is even; what it is without elements is open.

    Args:
        values: float64 `[L, M]`, any order.
        counts: int64 `[L, M]`, elements with that value.

    Returns:
        float64 `[L]`.
    """
    order = values.argsort(dim=1, stable=True)
    up_to = counts.gather(1, order).cumsum(dim=1)
    size = up_to[:, -1:]
    ranks = torch.cat([(size - 1).clamp(min=0) // 2, size // 2], dim=1)
    at = torch.searchsorted(up_to, ranks, right=True).clamp_(max=values.shape[1] - 1)
    return values.gather(1, order.gather(1, at)).mean(dim=1)
