"""Norms of gradients against torch's own, in one process; tests/engines has the sharded ones."""

import math

import pytest
import torch

from gradscale.amp.gradient_norm import GradientNorm


def params(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    made = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((7, 3), (5,), (), (0, 4), (2, 2))]
    for param in made[:-1]:  # the last has no gradient
        param.grad = torch.randn(param.shape, generator=generator).to(dtype)
    return made


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torchs(p, dtype):
    made = params(dtype)
    norm = GradientNorm([made[:1], made[1:]], p)
    norms = norm.measure()
    for mine, part in zip(norms, (made[:1], made[1:]), strict=True):
        elements = torch.cat([param.grad.flatten() for param in part if param.grad is not None])
        assert mine.item() == pytest.approx(torch.linalg.vector_norm(elements.double(), p).item(), rel=1e-6)
    everything = torch.cat([param.grad.flatten() for param in made[:-1]]).double()
    assert norm.total(norms).item() == pytest.approx(torch.linalg.vector_norm(everything, p).item(), rel=1e-6)


def test_narrow_gradients_are_not_rounded_to_their_few_digits():
    param = torch.nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    param.grad = torch.full((1000,), 0.1, dtype=torch.bfloat16)
    exact = param.grad.double().norm().item()
    assert GradientNorm([[param]]).measure().item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(p, bad):
    made = params()
    made[0].grad[2, 2] = bad
    assert not math.isfinite(GradientNorm([made], p).measure().item())


def test_each_bucket_is_scaled_by_its_coefficient_and_one_of_1_not_at_all():
    made = params()
    before = [None if param.grad is None else param.grad.clone() for param in made]
    GradientNorm([made[:1], made[1:]]).scale_([1.0, 0.5])
    assert torch.equal(made[0].grad, before[0])
    assert torch.equal(made[1].grad, before[1] * 0.5) and made[4].grad is None


def test_sparse_gradients_count_with_their_sums():
    table = torch.nn.Embedding(6, 2, sparse=True)
    table(torch.tensor([1, 1, 4])).sum().backward()
    norm = GradientNorm([[table.weight]])
    assert norm.measure().item() == pytest.approx(math.sqrt(2 * 4 + 2 * 1))
    norm.scale_([0.5])
    assert norm.measure().item() == pytest.approx(0.5 * math.sqrt(10))


def test_without_gradients_it_is_0():
    assert GradientNorm([[]]).measure().tolist() == [0.0]
    assert GradientNorm([params()[-1:], []]).measure().tolist() == [0.0, 0.0]
