"""Statistics see a layer only through its occupied bins: one left out, or put into another row, falsifies them all."""

import numpy as np
import pytest
import torch

from gradscale.scalers.histogram import N_BINS, bin_values, count_values
from gradscale.scalers.occupied import Occupied

LAYERS = [
    torch.randn(500),
    torch.randn(3000) * 1e-8,
    torch.rand(50) + 1,
    -torch.rand(70),
    torch.zeros(4),
    torch.tensor([-3.4e38, -0.0, 0.0, 3.4e38]),
    torch.tensor([7.0]),
    torch.empty(0),
]


def dense(layers):
    return torch.stack([count_values(layer)[0] for layer in layers])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("layers", [LAYERS, LAYERS[:1], LAYERS[2:4], LAYERS[4:5], LAYERS[7:]])
def test_nothing_is_lost_and_nothing_added(layers, dtype):
    counts = dense(layers)
    found = Occupied.of(counts.to(dtype))
    back = torch.zeros(len(layers), N_BINS + 2, dtype=torch.int64).scatter_add_(1, found.places, found.counts)
    assert torch.equal(back[:, 1:-1], counts) and (back[:, [0, -1]] == 0).all()
    assert (found.values.diff(dim=1) >= 0).all()
    for row in range(len(layers)):
        first, last = int(found.first[row]), int(found.last[row])
        assert torch.equal(found.counts[row, first:last], counts[row][counts[row] > 0])
        assert torch.equal(found.values[row, first:last], bin_values(counts.device)[counts[row] > 0])
        assert (found.values[row, first : found.zero] <= 0).all() and (found.values[row, found.zero : last] >= 0).all()


def test_columns_beside_other_layers_change_no_sum():
    together = Occupied.of(dense(LAYERS[:7]))
    for row, layer in enumerate(LAYERS[:7]):
        alone = Occupied.of(dense([layer]))
        assert torch.equal(alone.mean[0], together.mean[row]) and torch.equal(alone.center()[0], together.center()[row])
        a, b = int(together.first[row]), int(together.last[row])
        sums = together.sums_from_zero(together.weighted_values)[row, a : b + 1]
        assert torch.equal(alone.sums_from_zero(alone.weighted_values)[0], sums)


def test_sums_keep_small_numbers_beside_huge_ones():
    small = torch.rand(1000).to(torch.bfloat16).float() * 1e-20
    found = Occupied.of(dense([torch.cat([small, torch.tensor([-1e30, 1e30])])]))
    sums = found.sums_from_zero(found.weighted_values)[0]
    np.testing.assert_allclose(sums[-2] - sums[found.zero], small.to(torch.bfloat16).double().sum(), rtol=1e-12)


def test_layers_of_zeros_are_recognized():
    zeros = [torch.zeros(3), torch.tensor([-0.0]), torch.empty(0)]
    others = [torch.tensor([0.0, 1e-38]), torch.tensor([-1.0, 1.0])]
    assert Occupied.of(dense([*zeros, *others])).is_zero.tolist() == [True, True, True, False, False]
