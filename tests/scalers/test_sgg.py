"""MDA, the global deviation and the scale update against exact medians (arXiv 2506.01049, equations 5 to 7)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.scalers import sgg
from gradscale.scalers.deviation import ParameterDeviations
from gradscale.scalers.histogram import count_values
from gradscale.scalers.occupied import Occupied
from gradscale.scalers.sgg import (
    assign_labels,
    group_layers,
    mda_of_layer,
    mda_over_clusters,
    update_scales,
)
from tests.reference.sgg_reference import deviations, kmeans

GRID = 2**-8  # largest relative error of rounding to bfloat16


ROUNDED = 2**-12 * (1 + 1e-6)  # largest relative error of a median over all parameters, see `ParameterDeviations`


def occupied(*layers):
    return Occupied.of(torch.stack([count_values(layer)[0] for layer in layers]))


def grouping_of(*layers, n_clusters=3):
    return group_layers(occupied(*layers), n_clusters)


def mda_over_parameters(*batches):
    deviations = ParameterDeviations(torch.device("cpu"))
    for layers in batches:
        deviations.add(occupied(*layers))
    return deviations.median()


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
    np.testing.assert_allclose(mda_over_parameters([layer]), np.median(deviation), rtol=ROUNDED, atol=1e-12)


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
    np.testing.assert_allclose(mda_over_parameters(layers), exact, rtol=2 * GRID)
    assert mda_over_parameters(*([layer] for layer in layers)) == mda_over_parameters(layers)
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
    reference, centroids = kmeans(key.numpy(), 3)
    exact = [np.median(deviations(key)[reference == c]) for c in range(3)]
    np.testing.assert_allclose(report.layers[0].mda, exact, rtol=0.04)
    np.testing.assert_allclose(report.layers[0].centroids, centroids, atol=0.03, rtol=1e-9)
    if ratio <= 1e4:  # boundaries are float32
        assert (state["labels"].numpy().ravel() != reference).mean() < 0.03


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e37])
@given(st.lists(st.floats(-9, 9, width=16), min_size=1, max_size=40), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_median_over_all_parameters_is_rounded_to_twelve_bits_and_no_more(scale, data, parts):
    tensor = (torch.tensor(data, dtype=torch.float64) * scale).to(torch.bfloat16).double()
    layers = [part for part in tensor.chunk(parts) if len(part)]
    exact = np.median(np.concatenate([deviations(layer) for layer in layers]))
    np.testing.assert_allclose(mda_over_parameters(layers), exact, rtol=ROUNDED, atol=scale * 1e-14)
    assert mda_over_parameters([torch.full((5,), scale)]) == 0


def test_medians_are_exact_on_either_side_of_the_mean():
    """Of clusters that lie below the mean, above it and around it."""
    layer = torch.cat([torch.randn(301) * 0.1 - 4, torch.randn(500) * 0.3 + 0.2, torch.randn(200) * 0.1 + 9])
    layer = layer.to(torch.bfloat16).float()
    for n_clusters in (1, 2, 3, 5):
        grouping = grouping_of(layer, n_clusters=n_clusters)
        labels, deviation = assign_labels(layer, grouping.boundaries[0]).numpy(), deviations(layer)
        exact = [np.median(deviation[labels == c]) for c in range(n_clusters)]
        np.testing.assert_allclose(grouping.mda[0].numpy(), exact, rtol=1e-13)


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


def test_the_d_of_a_layer_keeps_its_mean_rate():
    mda, sizes = torch.tensor([4.0, 0.5, 2.0], dtype=torch.float64), torch.tensor([10, 70, 20])
    typical = mda_of_layer(mda, sizes)
    assert typical == pytest.approx(100 / (10 / 4 + 70 / 0.5 + 20 / 2))
    scales = torch.tensor(
        update(tuple(mda.tolist()), sizes=tuple(sizes.tolist()), global_mda=typical, scales=(1, 1, 1))
    )
    assert float((scales * sizes).sum() / sizes.sum()) == pytest.approx(1, rel=1e-6)
    assert scales[0] < scales[2] < 1 < scales[1]


def test_clusters_that_do_not_deviate_do_not_decide_about_the_others():
    mda, sizes = torch.tensor([0.0, 3.0, 5.0], dtype=torch.float64), torch.tensor([900, 10, 0])
    assert mda_of_layer(mda, sizes) == 3.0  # such as rows of an embedding that have not been seen
    assert mda_of_layer(torch.zeros(3, dtype=torch.float64), sizes) == 0.0


def test_labels_and_factors():
    momentum = torch.tensor([[-2.0, -0.5, 0.0], [0.5, 0.75, 3.0]], dtype=torch.float32)
    boundaries = torch.tensor([-1.0, 0.5])
    labels = assign_labels(momentum, boundaries)
    assert labels.dtype == torch.uint8 and labels.tolist() == [[0, 1, 1], [1, 2, 2]]
    assert assign_labels(momentum, torch.tensor([0.6, 2.5]), absolute=True).tolist() == [[1, 0, 0], [0, 1, 2]]
    assert assign_labels(momentum, torch.tensor([float("inf")] * 2)).sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("absolute", [False, True])
def test_labels_are_written_into_any_layout_piece_by_piece(dtype, absolute, monkeypatch):
    monkeypatch.setattr(sgg, "_PIECE_ON_CPU", 50)
    momentum = torch.randn(20, 31).to(dtype)
    momentum[3, 4] = math.nan
    boundaries = torch.tensor([-0.7001, 0.1, math.inf])
    key = momentum.double().abs() if absolute else momentum.double()
    expected = (key[..., None] > boundaries[:2]).sum(dim=-1).to(torch.uint8)
    for layout in (momentum, momentum.t().contiguous().t(), momentum.repeat_interleave(2, dim=1)[:, ::2]):
        assert torch.equal(assign_labels(layout, boundaries, absolute=absolute), expected)
        out = torch.full((20, 62), 77, dtype=torch.uint8)
        assert assign_labels(layout, boundaries, absolute=absolute, out=out[:, ::2]).data_ptr() == out.data_ptr()
        assert torch.equal(out[:, ::2], expected) and (out[:, 1::2] == 77).all()


def test_boundaries_are_not_rounded_to_the_dtype_of_the_momentum():
    momentum = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)
    assert assign_labels(momentum, torch.tensor([1.0077])).tolist() == [0, 1]
    assert assign_labels(torch.tensor([65504.0], dtype=torch.float16), torch.tensor([7e4])).tolist() == [0]
    assert assign_labels(torch.tensor([math.inf], dtype=torch.float16), torch.tensor([7e4])).tolist() == [1]
