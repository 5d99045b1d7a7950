"""MDA, the global deviation and the scale update against exact medians (arXiv 2506.01049, equations 5 to 7)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.scalers.histogram import count_values
from gradscale.scalers.sgg import (
    assign_labels,
    group_layers,
    mda_over_clusters,
    mda_over_parameters,
    scale_factor,
    update_scales,
)
from tests.reference.sgg_reference import deviations, lloyd

GRID = 2**-8  # largest relative error of rounding to bfloat16


def grouping_of(*layers, n_clusters=3):
    return group_layers(torch.stack([count_values(layer)[0] for layer in layers]), n_clusters)


@given(st.lists(st.integers(-200, 200), min_size=1, max_size=40), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_medians_are_exact_for_values_on_the_grid(data, n_clusters):
    layer = torch.tensor(data, dtype=torch.float32)  # integers up to 256 are bfloat16 numbers
    grouping = grouping_of(layer, n_clusters=n_clusters)
    labels = assign_labels(layer, grouping.boundaries[0]).numpy()
    deviation = deviations(layer)
    for c in range(n_clusters):
        assert grouping.sizes[0, c] == (labels == c).sum()
        if (labels == c).any():
            np.testing.assert_allclose(grouping.mda[0, c].item(), np.median(deviation[labels == c]), atol=1e-12)
    np.testing.assert_allclose(mda_over_parameters([grouping]), np.median(deviation), atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e20])
def test_medians_are_within_the_grid_of_the_exact_ones(scale):
    layers = [torch.randn(4001) * scale, torch.rand(300, 7) * scale * 0.01, torch.randn(2, 5) * scale * 3]
    groupings = [grouping_of(layer) for layer in layers]
    expected_clusters = []
    for layer, grouping in zip(layers, groupings, strict=True):
        labels, deviation = assign_labels(layer, grouping.boundaries[0]).numpy().ravel(), deviations(layer)
        exact = [np.median(deviation[labels == c]) for c in range(3)]
        np.testing.assert_allclose(grouping.mda[0].numpy(), exact, rtol=8 * GRID, atol=GRID * layer.abs().max().item())
        expected_clusters += exact
    whole = grouping_of(*[layer for layer in layers])
    np.testing.assert_array_equal(whole.mda.numpy(), np.concatenate([g.mda.numpy() for g in groupings]))
    np.testing.assert_allclose(mda_over_clusters([whole]), np.median(expected_clusters), rtol=4 * GRID)
    exact = np.median(np.concatenate([deviations(layer) for layer in layers]))
    np.testing.assert_allclose(mda_over_parameters([whole]), exact, rtol=2 * GRID)
    assert mda_over_parameters(groupings) == mda_over_parameters([whole])
    assert mda_over_clusters(groupings) == mda_over_clusters([whole])


@pytest.mark.parametrize("ratio", [1, 3, 10, 100, 1e4, 1e6])
@pytest.mark.parametrize("absolute", [False, True])
def test_narrow_values_far_from_zero_are_resolved(ratio, absolute):
    """In double precision, so that the values themselves keep the differences that are looked for."""
    from gradscale.optim.rule import Layer
    from gradscale.optim.sgg_scaler import SGGScaler

    scaler = SGGScaler()
    group = {name: option.default for name, option in scaler.options.items()} | {"scaled": True, "total_steps": None}
    group["momentum_sign"] = "absolute" if absolute else "signed"
    momentum = -(torch.randn(40, 100, dtype=torch.float64) + ratio)
    state = {"scales": torch.ones(3), "boundaries": torch.zeros(2), "labels": torch.zeros(40, 100, dtype=torch.uint8)}
    report = scaler.observe([Layer("l", 4000, (), momentum, state, group, True)], 1)
    key = momentum.abs() if absolute else momentum
    reference, centroids = lloyd(key.numpy(), 3)
    exact = [np.median(deviations(key)[reference == c]) for c in range(3)]
    np.testing.assert_allclose(report.layers[0].mda, exact, rtol=0.04)
    np.testing.assert_allclose(report.layers[0].centroids, centroids, atol=0.03, rtol=1e-9)
    if ratio <= 1e4:  # boundaries are float32
        assert (state["labels"].numpy().ravel() != reference).mean() < 0.03


def update(mda, *, sizes=(1, 1), global_mda=1.0, decay=0.0, bounds=(0.1, 10.0), scales=(1.0, 1.0)):
    return update_scales(
        torch.tensor([scales]),
        torch.tensor([mda], dtype=torch.float64),
        torch.tensor([sizes]),
        global_mda=global_mda,
        decay=decay,
        bounds=bounds,
    )[0].tolist()


def test_scale_update_by_hand():
    assert update((0.5, 4.0)) == pytest.approx([2.0, 0.25], rel=1e-6)
    assert update((0.001, 1000.0)) == pytest.approx([10.0, 0.1])
    assert update((0.5, 4.0), decay=0.9, scales=(3.0, 1.0)) == pytest.approx([2.9, 0.925])
    assert update((0.5, 0.0), sizes=(1, 0), scales=(1.0, 7.0)) == pytest.approx([2.0, 7.0])  # an empty cluster waits
    assert update((0.0, 0.0), global_mda=0.0, scales=(3.0, 0.5)) == [3.0, 0.5]  # nothing deviates: nothing moves
    assert update((0.0, 1.0)) == pytest.approx([10.0, 1.0])
    assert update((0.5, 4.0), bounds=(2.0, 2.0)) == [2.0, 2.0]


@pytest.mark.parametrize("magnitude", [1.0, 1e-6, 1e-12, 1e-30])
def test_scales_do_not_depend_on_the_magnitude_of_the_gradients(magnitude):
    scaled = update((0.5 * magnitude, 4.0 * magnitude), global_mda=magnitude)
    assert scaled == pytest.approx([2.0, 0.25], rel=1e-6)


@given(st.lists(st.floats(0, 1e30), min_size=2, max_size=2), st.floats(0, 1e30), st.floats(0, 0.999))
@settings(max_examples=100, deadline=None)
def test_scales_are_always_finite_and_bounded(mda, global_mda, decay):
    for scale in update(tuple(mda), global_mda=global_mda, decay=decay):
        assert 0.1 <= scale <= 10.0


def test_labels_and_factors():
    momentum = torch.tensor([[-2.0, -0.5, 0.0], [0.5, 0.75, 3.0]], dtype=torch.float32)
    boundaries = torch.tensor([-1.0, 0.5])
    labels = assign_labels(momentum, boundaries)
    assert labels.dtype == torch.uint8 and labels.tolist() == [[0, 1, 1], [1, 2, 2]]
    assert assign_labels(momentum, torch.tensor([0.6, 2.5]), absolute=True).tolist() == [[1, 0, 0], [0, 1, 2]]
    assert assign_labels(momentum, torch.tensor([float("inf")] * 2)).sum() == 0
    factor = scale_factor(labels, torch.tensor([3.0, 1.0, 0.25]), torch.float64)
    assert factor.dtype == torch.float64 and factor.tolist() == [[3.0, 1.0, 1.0], [1.0, 0.25, 0.25]]
    assert scale_factor(labels.t(), torch.tensor([3.0, 1.0, 0.25]), torch.float32).shape == (3, 2)
