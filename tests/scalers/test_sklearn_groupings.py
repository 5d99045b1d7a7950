"""scikit-learn's groupings on histograms against scikit-learn on single elements, and the form they are kept in.

Guards against clusters that come out otherwise from the bins, and labels that are not those of the bins' clusters.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from sklearn.mixture import GaussianMixture

from gradscale.scalers.ablations import as_intervals, group_layers_otherwise
from gradscale.scalers.histogram import count_values
from gradscale.scalers.occupied import Occupied
from gradscale.scalers.sgg import assign_labels
from tests.reference.sgg_reference import kmeans, within_cluster_squares

METHODS = ["minibatch_kmeans", "gmm", "dbscan"]


def grouped(layer, method, n_clusters=3, counts=None):
    """The grouping of one layer, and the label of every element."""
    counts = count_values(layer)[0] if counts is None else counts
    zero = torch.zeros(1, dtype=torch.float64)
    found = group_layers_otherwise(Occupied.of(counts[None]), n_clusters, zero, grouping=method, statistic="mda")
    labels = assign_labels(layer, found.boundaries[0])
    return found, labels if found.owners is None else found.owners[0][labels.long()]


def heavy(*shape):
    return torch.from_numpy(np.random.default_rng(3).standard_t(3, size=shape)).float()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_clusters", [2, 3, 5])
def test_elements_get_the_labels_of_their_bins(method, n_clusters):
    layer = heavy(4000)
    found, labels = grouped(layer, method, n_clusters)
    assert found.sizes[0].sum() == 4000 and len(found.sizes[0]) == n_clusters
    counted = torch.bincount(labels.long(), minlength=n_clusters)
    # An element halfway between two bins, where clusters meet, may be counted in the other.
    assert (counted - found.sizes[0]).abs().max() <= 2
    for c in range(n_clusters):
        if counted[c]:
            assert found.centroids[0, c].item() == pytest.approx(layer[labels == c].mean().item(), abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_groups_follow_from_the_counts_alone(method):
    layer = heavy(3000)
    parts = sum(count_values(part)[0] for part in layer.split([1, 999, 2000]))
    first, again = grouped(layer, method)[0], grouped(layer, method, counts=parts)[0]
    for name in ("boundaries", "sizes", "mda", "centroids"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_mini_batches_come_near_the_best_clusters():
    layer = heavy(3000)
    labels = grouped(layer, "minibatch_kmeans")[1].numpy()
    best = within_cluster_squares(layer.numpy(), kmeans(layer.numpy(), 3)[0])
    assert best <= within_cluster_squares(layer.numpy(), labels) * (1 + 1e-3) <= 1.3 * best
    assert (np.diff(labels[layer.numpy().argsort()].astype(int)) >= 0).all()


def test_components_of_a_mixture_are_those_of_the_elements_and_may_lie_inside_one_another():
    generator = np.random.default_rng(0)
    narrow, wide = generator.normal(0, 0.1, 3000), generator.normal(0, 2, 1000)
    layer = torch.from_numpy(np.concatenate([narrow, wide]))
    found, labels = grouped(layer, "gmm", 2)
    points = layer.numpy()[:, None]
    start = {"means_init": [[0.0], [0.1]], "precisions_init": [[[100.0]], [[0.25]]], "weights_init": [0.7, 0.3]}
    theirs = GaussianMixture(2, **start, tol=1e-6, max_iter=1000).fit(points).predict(points)
    assert (labels.numpy() == theirs).mean() > 0.99
    assert found.owners[0].tolist() == [1, 0, 1]  # the wide one is on both sides of the narrow one
    assert found.mda[0, 0] < found.mda[0, 1]


def test_a_dense_place_is_a_cluster_and_what_lies_elsewhere_is_noise():
    generator = np.random.default_rng(0)
    layer = np.concatenate([generator.normal(0, 1, 3000), generator.normal(9, 0.2, 1000), [4.5, -50.0, 50.0]])
    found, labels = grouped(torch.from_numpy(layer), "dbscan")
    width = 1.4826 * np.median(np.abs(layer - np.median(layer)))
    theirs = DBSCAN(eps=0.1 * width, min_samples=41).fit(layer[:, None]).labels_
    assert theirs.max() == 1
    theirs[theirs == -1] = 2
    assert (labels.numpy() == theirs).mean() > 0.98
    assert labels[-3:].tolist() == [2, 2, 2] and found.owners[0].tolist() == [2, 0, 2, 1, 2]
    # With one place for a cluster the smaller one is among the noise.
    assert grouped(torch.from_numpy(layer), "dbscan", 2)[1][3500] == 1


@pytest.mark.parametrize("method", METHODS)
@given(st.lists(st.sampled_from([-3.0, -1e-30, 0.0, 1e-30, 0.5, 3e38]), min_size=1, max_size=9), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_few_and_extreme_values_are_grouped(method, values, n_clusters):
    layer = torch.tensor(values)
    found, labels = grouped(layer, method, n_clusters)
    assert found.sizes.sum() == len(values) and not found.boundaries.isnan().any() and not found.mda.isnan().any()
    assert (found.boundaries[0, 1:] >= found.boundaries[0, :-1]).all() and labels.max() < n_clusters
    assert torch.equal(torch.bincount(labels.long(), minlength=n_clusters), found.sizes[0])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 5))
def test_no_layer_has_more_intervals_than_it_has_room_for(runs, most):
    labels, counts = np.array([label for label, _ in runs]), np.array([count for _, count in runs])
    begins, of = as_intervals(labels, counts, most)
    assert begins[0] == 0 and len(begins) == len(of) <= most and (np.diff(begins) > 0).all() and np.diff(of).all()
    if np.count_nonzero(np.diff(labels)) < most:
        assert (np.repeat(of, np.diff(begins, append=len(labels))) == labels).all()
