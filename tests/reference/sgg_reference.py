"""SGG-AdamW written plainly in float64 and numpy, element by element: slow, obvious, and independent of `src`.

Algorithm 1 and equations 5 to 7 of arXiv 2506.01049, with the documented readings: decoupled weight decay is not
scaled, clusters are kept in order of their centroids, 1e-8 in the ratio is relative where the model's deviation is
below 1.
"""

import numpy as np


def kmeans(values, n_clusters):
    """Exact k-means: the cuts of the sorted values with the least sum of squares. Returns labels and centroids.

    Clusters in one dimension are intervals, so that dynamic programming over the last cut finds the best of all
    partitions (Wang and Song, 2011). Values that are equal stay together.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    distinct, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(distinct) <= n_clusters:
        return place, distinct
    centred = distinct - values.mean()  # squares of numbers far from zero would swallow their differences
    number, total, squares = (np.concatenate([[0.0], np.cumsum(counts * centred**power)]) for power in range(3))
    # Sum of squares of the distinct values from one place up to, but not with, another.
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.subtract.outer(squares, squares).T
        cost -= np.subtract.outer(total, total).T ** 2 / np.subtract.outer(number, number).T
    cost[np.tril_indices(len(cost))] = np.inf
    best, last_cuts = cost[0], []
    for _ in range(n_clusters - 1):
        through = best[:, None] + cost
        last_cuts.append(through.argmin(axis=0))
        best = through.min(axis=0)
    cuts = [len(distinct)]
    for of_end in reversed(last_cuts):
        cuts.insert(0, of_end[cuts[0]])
    labels = np.repeat(np.arange(n_clusters), np.diff([0, *cuts]))[place]
    return labels, np.array([values[labels == c].mean() for c in range(n_clusters)])


def within_cluster_squares(values, labels):
    """Sum over clusters of the squared distances to the cluster's mean."""
    values = np.asarray(values, dtype=np.float64).ravel()
    groups = [values[labels == c] for c in np.unique(labels)]
    return sum(((group - group.mean()) ** 2).sum() for group in groups)


def deviations(momentum):
    """|m_i - mean(m_l)| of every element."""
    momentum = np.asarray(momentum, dtype=np.float64).ravel()
    return np.abs(momentum - momentum.mean())


def statistic_of(name, values, layer):
    """What of a cluster's elements is compared with the model's; `layer` has all elements of its layer."""
    return {
        "mda": lambda: np.median(np.abs(values - layer.mean())),
        "mean": lambda: abs(values.mean()),
        "variance": lambda: values.var(),
        "variance_sign": lambda: values.var(),
        "l2": lambda: np.sqrt((values**2).mean()),
        "mad": lambda: np.median(np.abs(values - np.median(values))),
    }[name]()


class ReferenceSGGAdamW:
    """SGG on AdamW over a dict of float64 arrays, with exact clusters and exact medians."""

    def __init__(
        self,
        params,
        *,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        n_clusters=3,
        recluster_interval=500,
        scale_decay=0.9,
        scale_bounds=(0.1, 10.0),
        momentum_sign="signed",
        labels="frozen",
        global_mda="layer",
        statistic="mda",
        min_layer_size=0,
        decoupled=True,
        nesterov=True,
    ):
        self.params = {name: np.array(value, dtype=np.float64) for name, value in params.items()}
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.n_clusters, self.interval, self.scale_decay = n_clusters, recluster_interval, scale_decay
        self.bounds, self.sign, self.label_mode, self.global_mda = scale_bounds, momentum_sign, labels, global_mda
        self.statistic, self.min_layer_size, self.decoupled = statistic, min_layer_size, decoupled
        self.nesterov = nesterov
        self.step_count = 0
        self.m = {name: np.zeros_like(value) for name, value in self.params.items()}
        self.v = {name: np.zeros_like(value) for name, value in self.params.items()}
        layers = [name for name, value in self.params.items() if value.ndim >= 2]
        self.labels = {name: np.zeros(self.params[name].size, dtype=int) for name in layers}
        self.scales = {name: np.ones(n_clusters) for name in layers}
        self.centroids = {}

    def grouped(self, name):
        """What is grouped: the flattened momentum or its absolute value."""
        momentum = self.m[name].ravel()
        return np.abs(momentum) if self.sign == "absolute" else momentum

    def group(self):
        """GradCluster, MDA and ScaleUpdate for all layers."""
        per_cluster, all_deviations = {}, []
        for name in self.labels:
            n_clusters = 1 if self.params[name].size < self.min_layer_size else self.n_clusters
            labels, centroids = kmeans(self.grouped(name), n_clusters)
            self.labels[name], self.centroids[name] = labels, centroids
            deviation = deviations(self.grouped(name))
            all_deviations.append(deviation)
            for c in np.unique(labels):
                layer = self.grouped(name)
                per_cluster[name, c] = statistic_of(self.statistic, layer[labels == c], layer)
        typical = np.median(list(per_cluster.values()))
        if self.global_mda == "parameters":
            typical = np.median(np.concatenate(all_deviations))
        for (name, c), mda in per_cluster.items():
            if self.global_mda == "layer":  # so that the mean of the ratio over the layer's elements is 1
                own = {k: value for (layer, k), value in per_cluster.items() if layer == name and value > 0}
                sizes = {k: np.count_nonzero(self.labels[name] == k) for k in own}
                typical = sum(sizes.values()) / sum(sizes[k] / own[k] for k in own)
            ratio = np.clip(typical / (mda + 1e-8 * min(1.0, typical)), *self.bounds)
            if self.statistic == "variance_sign":
                low, high = self.bounds
                ratio = high if mda < typical else low if mda > typical else 1.0
            self.scales[name][c] = self.scale_decay * self.scales[name][c] + (1 - self.scale_decay) * ratio

    def step(self, grads):
        """One step from a dict of gradients."""
        self.step_count += 1
        beta1, beta2 = self.betas
        grads = {name: np.asarray(grad, dtype=np.float64) for name, grad in grads.items()}
        for name in grads:
            if not self.decoupled:
                grads[name] = grads[name] + self.weight_decay * self.params[name]
            grad = grads[name]
            self.m[name] = beta1 * self.m[name] + (1 - beta1) * grad
            self.v[name] = beta2 * self.v[name] + (1 - beta2) * grad**2
        if self.step_count % self.interval == 0:
            self.group()
        for name in grads:
            m_hat = self.m[name] / (1 - beta1**self.step_count)
            if self.nesterov:  # as if the gradient came again
                m_hat = (beta1 * self.m[name] + (1 - beta1) * grads[name]) / (1 - beta1 ** (self.step_count + 1))
            v_hat = self.v[name] / (1 - beta2**self.step_count)
            rate = np.full(self.params[name].size, self.lr)
            if name in self.labels:
                labels = self.labels[name]
                if self.label_mode == "live" and name in self.centroids:
                    centroids = self.centroids[name]
                    labels = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, self.grouped(name))
                rate = rate * self.scales[name][labels]
            if self.decoupled:
                self.params[name] *= 1 - self.lr * self.weight_decay
            self.params[name] -= rate.reshape(m_hat.shape) * m_hat / (np.sqrt(v_hat) + self.eps)
