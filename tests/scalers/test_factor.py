"""The two forms of a factor, for compiled code and for single operations, against a loop."""

import pytest
import torch

from gradscale.scalers import factor
from gradscale.scalers.factor import factor_by_label, factor_by_value

SCALES = {1: [0.5], 2: [3.0, 0.1], 3: [1.5, 0.1, 10.0], 12: [0.1 * 1.7**k for k in range(12)]}


@pytest.fixture(params=["operations", "compiled form"])
def form(request, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param == "compiled form")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_clusters", SCALES)
def test_by_label(form, n_clusters, dtype):
    scales = torch.tensor(SCALES[n_clusters], dtype=dtype)
    labels = (torch.arange(60, dtype=torch.uint8) % n_clusters).view(3, 4, 5)
    found = factor_by_label(labels.transpose(0, 2), scales)
    assert found.dtype == dtype and found.shape == (5, 4, 3)
    expected = [SCALES[n_clusters][label] for label in labels.transpose(0, 2).reshape(-1).tolist()]
    assert found.reshape(-1).tolist() == torch.tensor(expected, dtype=dtype).tolist()


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_clusters", [2, 3, 12])
def test_by_value(form, n_clusters, dtype, absolute):
    scales = torch.tensor(SCALES[n_clusters])
    # The second boundary lies between two bfloat16 numbers; the last ones are those of empty clusters.
    edges = [-0.5, 1.006, *[float("inf")] * 9][: n_clusters - 1] if n_clusters < 12 else [k / 4 - 1 for k in range(11)]
    values = [-3.0, -0.5, -0.499, 0.0, -0.0, 1.0, 1.0078125, 1.75, 1e30, float("inf"), float("-inf"), float("nan")]
    momentum = torch.tensor(values * 2, dtype=dtype).view(4, 6)
    found = factor_by_value(momentum, torch.tensor(edges), scales, absolute=absolute)
    expected = []
    for value in momentum.reshape(-1).tolist():
        value = abs(value) if absolute else value
        expected.append(scales[sum(value > edge for edge in torch.tensor(edges).tolist())].item())
    assert found.shape == (4, 6) and found.reshape(-1).tolist() == expected


def test_infinity_beside_a_boundary_at_infinity_is_not_above_it(form):
    found = factor_by_value(torch.tensor([float("inf")]), torch.tensor([float("inf")]), torch.tensor([2.0, 5.0]))
    assert found.item() == 2.0


def test_a_long_chain_is_looked_up():
    assert max(SCALES) > factor._LONGEST_CHAIN > 3
