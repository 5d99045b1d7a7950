"""A wrong trust ratio is a wrong learning rate for a whole layer, and one of 0 stops it without a word."""

import math

import numpy as np
import pytest
import torch

from gradscale.bases.lars import lars_momentum, lars_trust_ratio
from tests.reference.dgs_reference import ReferenceDGS

OPTIONS = {"trust_coefficient": 0.02, "weight_decay": 0.1, "eps": 1e-9}


def squares(tensor):
    return tensor.double().square().sum()


def ratio_of(weight_squares, grad_squares, **options):
    sums = (torch.tensor(each, dtype=torch.float64) for each in (weight_squares, grad_squares))
    return lars_trust_ratio(*sums, **{**OPTIONS, **options}).item()


def test_by_hand():
    """||w|| = 5, ||g|| = 2: 0.02 * 5 / (2 + 0.1 * 5) = 0.04, and with eps = 1.5 it is 0.1 / 4 = 0.025."""
    assert math.isclose(ratio_of(3.0**2 + 4.0**2, 2.0**2, eps=0.0), 0.04, rel_tol=1e-15)
    assert math.isclose(ratio_of(25.0, 4.0, eps=1.5), 0.025, rel_tol=1e-15)
    buffer = torch.tensor([10.0, -10.0])
    lars_momentum(torch.tensor([2.0, 0.5]), buffer, ratio=0.5, momentum=0.75)
    assert buffer.tolist() == [0.75 * 10 + 0.5 * 2, -0.75 * 10 + 0.5 * 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_the_reference(dtype):
    params = {"matrix": torch.randn(6, 5, dtype=dtype), "bias": torch.zeros(5, dtype=dtype)}
    arrays = {name: param.numpy() for name, param in params.items()}
    reference = ReferenceDGS(
        arrays, base="lars", form=None, lr=0.3, momentum=0.9, weight_decay=0.1, trust_coefficient=0.02, base_eps=1e-9
    )
    buffers = {name: torch.zeros_like(param) for name, param in params.items()}
    for _ in range(6):
        grads = {name: torch.randn_like(param) for name, param in params.items()}
        reference.step({name: grad.numpy() for name, grad in grads.items()})
        for name, param in params.items():
            ratio = lars_trust_ratio(squares(param), squares(grads[name]), **OPTIONS)
            assert ratio.dtype == torch.float64 and ratio.shape == ()
            lars_momentum(grads[name] + 0.1 * param, buffers[name], ratio=ratio, momentum=0.9)
            param.sub_(buffers[name] * 0.3)
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    for name, param in params.items():
        assert buffers[name].dtype == dtype
        np.testing.assert_allclose(param.numpy(), reference.params[name], rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("weight_squares", "grad_squares"), [(0.0, 4.0), (4.0, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("eps", [0.0, 1e-9])
def test_a_layer_of_zeros_or_without_gradient_has_the_ratio_1(weight_squares, grad_squares, eps):
    assert ratio_of(weight_squares, grad_squares, eps=eps) == 1.0
    assert ratio_of(weight_squares, grad_squares, eps=eps, weight_decay=0.0) == 1.0


@pytest.mark.parametrize("grad_squares", [math.inf, math.nan])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_gradient_that_is_not_finite_is_not_hidden_behind_a_ratio_of_0(grad_squares, weight_decay):
    assert math.isnan(ratio_of(4.0, grad_squares, weight_decay=weight_decay))


def test_a_weight_that_is_nan_is_not_hidden_behind_a_ratio_of_1():
    assert math.isnan(ratio_of(math.nan, 4.0))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_whose_squares_float32_cannot_hold(size):
    weight = torch.full((4,), size)
    ratio = lars_trust_ratio(squares(weight), squares(weight), trust_coefficient=0.02, weight_decay=0.0, eps=0.0)
    assert math.isclose(ratio.item(), 0.02, rel_tol=1e-7)


def test_options_may_be_tensors_and_sums_float32():
    sums = torch.tensor(25.0), torch.tensor(4.0)
    number = lars_trust_ratio(*sums, **OPTIONS)
    tensor = lars_trust_ratio(*sums, **{name: torch.tensor(value) for name, value in OPTIONS.items()})
    assert number.dtype == torch.float32
    torch.testing.assert_close(number, tensor, rtol=3e-7, atol=0)
