"""Clusters far from the optimum, NaN centroids or clusters that swap places would scale the wrong parameters."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.scalers.histogram import count_values
from gradscale.scalers.kmeans import cluster_histograms
from gradscale.scalers.occupied import Occupied
from gradscale.scalers.sgg import assign_labels
from tests.reference.sgg_reference import kmeans, within_cluster_squares


def cluster(tensor, n_clusters):
    clusters = cluster_histograms(Occupied.of(count_values(tensor)[0][None]), n_clusters)
    return clusters, assign_labels(tensor, clusters.boundaries[0])


def heavy(n):
    return torch.distributions.StudentT(2.0).sample((n,))


SAMPLES = {
    "normal": lambda: torch.randn(5000),
    "tiny gradients": lambda: torch.randn(5000) * 1e-9,
    "huge": lambda: torch.randn(5000) * 1e30,
    "skewed": lambda: torch.rand(5000).pow(4),
    "offset": lambda: 5 + 0.1 * torch.randn(5000),
    "heavy tails": lambda: heavy(5000),
    "very heavy tails": lambda: torch.distributions.Cauchy(0.0, 1.0).sample((5000,)),
    "mostly zero": lambda: torch.randn(5000) * (torch.rand(5000) < 0.02),
    "three lumps": lambda: torch.cat([torch.randn(2000) + c for c in (-30.0, 4.0, 50.0)]),
    "outliers on both sides": lambda: torch.cat([torch.randn(5000), torch.tensor([-1e6, 2e4])]),
    "small layer": lambda: torch.randn(40),
}


@pytest.mark.parametrize("n_clusters", [2, 3, 5])
@pytest.mark.parametrize("name", SAMPLES)
def test_near_the_exact_optimum(name, n_clusters):
    tensor = SAMPLES[name]()
    # The grid itself costs up to its rounding: compare on values that lie on it, then bound the rounding apart.
    on_grid = tensor.to(torch.bfloat16).float()
    _, labels = cluster(on_grid, n_clusters)
    reference, _ = kmeans(on_grid.numpy(), n_clusters)
    cost, optimum = (within_cluster_squares(on_grid.numpy(), each) for each in (labels.numpy(), reference))
    assert cost <= 1.005 * optimum

    _, labels = cluster(tensor, n_clusters)
    reference, _ = kmeans(tensor.numpy(), n_clusters)
    cost, optimum = (within_cluster_squares(tensor.numpy(), each) for each in (labels.numpy(), reference))
    rounding = tensor.numel() * (tensor.abs().max().item() * 2**-8) ** 2
    assert cost <= 1.005 * optimum + rounding


@pytest.mark.parametrize("n_clusters", [1, 2, 3, 4])
@given(data=st.lists(st.sampled_from([-3.0, -1e-30, -0.0, 0.0, 1e-20, 0.5, 2.0, 1e30]), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_few_distinct_values_are_clustered_exactly(n_clusters, data):
    tensor = torch.tensor(data)
    clusters, labels = cluster(tensor, n_clusters)
    reference, _ = kmeans(tensor.numpy(), n_clusters)
    cost, optimum = (within_cluster_squares(tensor.numpy(), each) for each in (labels.numpy(), reference))
    assert cost <= optimum * (1 + 1e-6)
    assert not clusters.centroids.isnan().any() and not clusters.boundaries.isnan().any()


@pytest.mark.parametrize(
    ("values", "centroids"),
    [
        ([0.25] * 7, [0.25, math.inf, math.inf]),
        ([0.0] * 7, [0.0, math.inf, math.inf]),
        ([-2.0, -2.0, 1.5], [-2.0, 1.5, math.inf]),
        ([3.0], [3.0, math.inf, math.inf]),
        ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]),
    ],
)
def test_degenerate_layers_have_empty_clusters_last(values, centroids):
    clusters, labels = cluster(torch.tensor(values), 3)
    assert clusters.centroids[0].tolist() == centroids
    assert [centroids[label] for label in labels.tolist()] == values


def test_centroids_ascend_and_are_the_means_of_their_bins():
    tensor = torch.randn(3000).to(torch.bfloat16).float()
    clusters, labels = cluster(tensor, 4)
    means = [tensor[labels == c].double().mean().item() for c in range(4)]
    np.testing.assert_allclose(clusters.centroids[0].numpy(), means, rtol=1e-12)
    assert means == sorted(means)


@pytest.mark.parametrize("n_clusters", [2, 3, 5])
@pytest.mark.parametrize("name", SAMPLES)
def test_clusters_are_a_fixed_point_of_lloyds_iteration(name, n_clusters):
    tensor = SAMPLES[name]().to(torch.bfloat16).float()
    clusters, labels = cluster(tensor, n_clusters)
    means = torch.stack([tensor[labels == c].double().mean() for c in range(n_clusters)])
    middles = ((means[1:] + means[:-1]) / 2).float()
    again = assign_labels(tensor, middles)
    assert torch.equal(labels, again)


def test_clusters_of_a_layer_do_not_depend_on_the_layers_beside_it():
    layers = [torch.randn(500) * 10.0**-i for i in range(20)]
    counts = torch.stack([count_values(layer)[0] for layer in layers])
    together = cluster_histograms(Occupied.of(counts), 3)
    for i in range(20):
        alone = cluster_histograms(Occupied.of(counts[i : i + 1]), 3)
        assert torch.equal(alone.boundaries[0], together.boundaries[i])
        assert torch.equal(alone.centroids[0], together.centroids[i])


def test_edges_cut_the_histogram_where_boundaries_cut_the_elements():
    tensor = torch.randn(4000).to(torch.bfloat16).float()
    clusters, labels = cluster(tensor, 3)
    bins = Occupied.of(count_values(tensor)[0][None])
    edges = clusters.edges[0].tolist()
    sizes = [bins.counts[0, a:b].sum().item() for a, b in zip(edges, edges[1:], strict=False)]
    assert sizes == [(labels == c).sum().item() for c in range(3)]
    for edge, boundary in zip(edges[1:-1], clusters.boundaries[0], strict=True):
        assert bins.values[0, edge - 1] <= boundary < bins.values[0, edge]
