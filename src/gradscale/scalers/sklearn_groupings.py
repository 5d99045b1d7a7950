"""scikit-learn's groupings of one layer, from its histogram: the paper's ablations, and slow.

All of them are fitted to the values of the occupied bins, weighted by how many elements each holds, and not to the
elements: so a layer that is sharded is grouped as a whole one, from the same counts, and its size does not matter. They
run on one thread with a fixed seed: the same counts give the same groups.
"""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_SEED = 0
_BATCH = 1024  # bins in a mini-batch, scikit-learn's own default
_SAMPLE = 4096  # points that stand for a layer in a Gaussian mixture, which takes no weights
# DBSCAN's radius as a share of the layer's standard deviation (the robust one: 1.4826 times its median absolute
# deviation), the share of all elements that makes a place dense, and the steps in a radius to which values are rounded.
_RADIUS, _DENSE, _STEPS = 0.1, 0.01, 8
_NORMAL = 1.4826


def labels_of_bins(method: str, values: Floats, counts: Integers, n_clusters: int, start: Integers) -> Integers:
    """Return the cluster of every bin.

    Args:
        method: "minibatch_kmeans", "gmm" or "dbscan".
        values: `[M]`, ascending and distinct.
        counts: `[M]`, elements in each bin, at least 1.
        n_clusters: K, at least 2.
        start: `[M]`, clusters by k-means, from which a Gaussian mixture starts.

    Returns:
        `[M]`, each below K. Of "minibatch_kmeans" ascending with the values; of "gmm" by how far the components
        deviate from the layer's mean; of "dbscan" ascending with the values, and K - 1 for noise.
    """
    threadpoolctl: Any = importlib.import_module("threadpoolctl")  # scikit-learn's own dependency
    with threadpoolctl.threadpool_limits(limits=1), warnings.catch_warnings():
        # A fit that has not converged is a fit; some layers have too few values for more.
        warnings.simplefilter("ignore")
        if method == "dbscan":
            return _dbscan(values, counts, n_clusters)
        if len(values) <= n_clusters:
            return np.arange(len(values))
        if method == "gmm":
            return _gmm(values, counts, start)
        return _minibatch_kmeans(values, counts, n_clusters)


def _minibatch_kmeans(values: Floats, counts: Integers, n_clusters: int) -> Integers:
    cluster: Any = importlib.import_module("sklearn.cluster")
    points = values / np.abs(values).max()
    model = cluster.MiniBatchKMeans(n_clusters, batch_size=_BATCH, n_init=1, random_state=_SEED)
    model.fit(points[:, None], sample_weight=counts.astype(np.float64))
    centers = np.unique(model.cluster_centers_)
    labels = np.searchsorted((centers[1:] + centers[:-1]) / 2, points)
    return np.unique(labels, return_inverse=True)[1].ravel()  # a cluster that no bin is nearest to is none


def _gmm(values: Floats, counts: Integers, start: Integers) -> Integers:
    mixture: Any = importlib.import_module("sklearn.mixture")
    weights = counts / counts.sum()
    mean = weights @ values
    deviations = np.abs(values - mean)
    # Of the scale of the data, because the mixture adds an absolute 1e-6 to variances.
    points = (values - mean) / math.sqrt(weights @ deviations**2)
    of_cluster = (start[None] == np.unique(start)[:, None]) * weights
    sizes = of_cluster.sum(axis=1)
    means = of_cluster @ points / sizes
    variances = (of_cluster * (points - means[:, None]) ** 2).sum(axis=1) / sizes
    model = mixture.GaussianMixture(
        len(sizes),
        weights_init=sizes / sizes.sum(),
        means_init=means[:, None],
        precisions_init=1 / (variances + 1e-6)[:, None, None],
        random_state=_SEED,
    )
    model.fit(points[_evenly(counts), None])
    component = model.predict(points[:, None])
    # Components may lie inside one another, all of them around 0: by their means the order would be one of chance.
    found = np.unique(component)
    spread = [_weighted_median(deviations[component == one], counts[component == one]) for one in found]
    order = {one: place for place, one in enumerate(found[np.argsort(spread, kind="stable")])}
    return np.array([order[one] for one in component], dtype=np.int64)


def _evenly(counts: Integers) -> Integers:
    """Bins of elements at even ranks; of all elements where these are few."""
    up_to = counts.cumsum()
    number = min(_SAMPLE, int(up_to[-1]))
    ranks = (2 * np.arange(number) + 1) * (int(up_to[-1]) / (2 * number))
    bins: Integers = np.searchsorted(up_to, np.floor(ranks), side="right")
    return bins


def _dbscan(values: Floats, counts: Integers, n_clusters: int) -> Integers:
    cluster: Any = importlib.import_module("sklearn.cluster")
    total = int(counts.sum())
    middle = _weighted_median(values, counts)
    width = _NORMAL * _weighted_median(np.abs(values - middle), counts)
    if width == 0:  # more than half of the elements are equal
        width = math.sqrt((counts / total) @ (values - (counts / total) @ values) ** 2)
    if width == 0:
        return np.zeros(len(values), dtype=np.int64)
    # It lists all neighbours of all points, and near 0 thousands of bins lie within a radius: they are put together.
    places, inverse = np.unique(np.round(values * (_STEPS / (_RADIUS * width))), return_inverse=True)
    weights = np.bincount(inverse.ravel(), weights=counts)
    model = cluster.DBSCAN(eps=_STEPS, min_samples=max(1, math.ceil(_DENSE * total)))
    found = model.fit(places[:, None], sample_weight=weights).labels_
    sizes = np.bincount(found + 1, weights=weights, minlength=n_clusters)[1:]
    # The largest, in the order of their values, as DBSCAN numbers them; what lies elsewhere is noise.
    kept = np.sort(np.argsort(-sizes, kind="stable")[: n_clusters - 1])
    labels = np.full(len(places), n_clusters - 1, dtype=np.int64)
    for place, one in enumerate(kept):
        labels[found == one] = place
    of_bins: Integers = labels[inverse.ravel()]
    return of_bins


def _weighted_median(values: Floats, counts: Integers) -> float:
    """Median of elements, of which `counts` have each value; the mean of the middle two of an even number."""
    order = np.argsort(values, kind="stable")
    up_to = counts[order].cumsum()
    ranks = np.array([(up_to[-1] - 1) // 2, up_to[-1] // 2])
    return float(values[order][np.searchsorted(up_to, ranks, side="right")].mean())
