"""Statistics of clusters and blocks against numpy on single elements: a wrong formula would still train."""

import numpy as np
import pytest
import torch

from gradscale.scalers import blocks
from gradscale.scalers.ablations import group_layers_otherwise
from gradscale.scalers.blocks import block_statistics
from gradscale.scalers.histogram import count_values
from gradscale.scalers.occupied import Occupied
from gradscale.scalers.sgg import assign_labels, group_layers, update_scales
from gradscale.scalers.statistics import cluster_statistic
from tests.reference.sgg_reference import statistic_of

STATISTICS = ["mda", "mean", "variance", "variance_sign", "l2", "mad"]


def occupied(*layers):
    return Occupied.of(torch.stack([count_values(layer)[0] for layer in layers]))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_statistics_are_exact_for_values_on_the_grid(statistic):
    layers = [torch.randint(-200, 200, (size,)).float() for size in (1, 2, 7, 50, 1001)]
    found = occupied(*layers)
    clusters = (found.values / 100).floor().clamp(-2, 1).to(torch.int64) + 2  # with some that are empty
    result = cluster_statistic(statistic, found, clusters, 5, None)
    for row, layer in enumerate(layers):
        of = (layer.double() / 100).floor().clamp(-2, 1) + 2
        for c in range(5):
            some = layer.double()[of == c].numpy()
            expected = statistic_of(statistic, some, layer.double().numpy()) if len(some) else 0
            np.testing.assert_allclose(result[row, c].item(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_what_was_subtracted_before_counting_does_not_change_a_statistic(statistic):
    shifted, centers = torch.randint(-99, 99, (500,)).float(), torch.tensor([1000.0], dtype=torch.float64)
    grouping = group_layers_otherwise(occupied(shifted), 3, centers, grouping="kmeans", statistic=statistic)
    layer = shifted.double() + 1000
    labels = assign_labels(layer, grouping.boundaries[0])
    assert grouping.statistic == statistic and grouping.sizes[0].tolist() == labels.bincount().tolist()
    for c in range(3):
        some = layer[labels == c].numpy()
        np.testing.assert_allclose(grouping.mda[0, c].item(), statistic_of(statistic, some, layer.numpy()), rtol=1e-12)
        np.testing.assert_allclose(grouping.centroids[0, c].item(), some.mean(), rtol=1e-12)


def test_mda_by_the_slow_way_is_that_by_the_fast_way():
    layers = occupied(torch.randn(3000), torch.randn(40, 7).pow(3), torch.tensor([0.25, 0.5]))
    fast = group_layers(layers, 3)
    slow = group_layers_otherwise(layers, 3, torch.zeros(3, dtype=torch.float64), grouping="kmeans", statistic="mda")
    for name in ("boundaries", "sizes"):
        assert torch.equal(getattr(fast, name), getattr(slow, name)), name
    torch.testing.assert_close(fast.mda, slow.mda, rtol=1e-12, atol=0)
    torch.testing.assert_close(fast.centroids, slow.centroids, rtol=1e-9, atol=1e-12)


def test_of_the_sign_alone_scales_go_to_a_bound():
    found = update_scales(
        torch.ones(1, 4),
        torch.tensor([[1e-30, 0.999, 1.0, 1.001]], dtype=torch.float64),
        torch.tensor([[1, 1, 1, 0]]),
        global_mda=1.0,
        decay=0.5,
        bounds=(0.2, 3.0),
        sign_only=True,
    )
    assert found.tolist() == [[2.0, 2.0, 1.0, 1.0]]  # the last has no elements


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_statistics_of_blocks_are_exact_piece_by_piece(statistic, absolute, block, monkeypatch):
    monkeypatch.setattr(blocks, "_PIECE", 40)
    layer = (torch.randn(11, 3, 4, dtype=torch.float64) + 0.5).transpose(0, 1).contiguous().transpose(0, 1)
    sizes, means, found = block_statistics(statistic, layer, block, absolute=absolute)
    values = (layer.abs() if absolute else layer).reshape(11, -1).numpy()
    expected = [values[begin : begin + block] for begin in range(0, 11, block)]
    assert sizes.tolist() == [each.size for each in expected]
    np.testing.assert_allclose(means, [each.mean() for each in expected])
    np.testing.assert_allclose(found, [statistic_of(statistic, each, values) for each in expected])
