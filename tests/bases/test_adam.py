"""The base rule alone against torch's Adam, over several steps and dtypes."""

import pytest
import torch

from gradscale.bases.adam import AdamFactors, adam_direction, adam_factors, adam_moments

# torch keeps bfloat16 moments in bfloat16, and these are kept in float32.
TOLERANCE = {torch.float64: (1e-14, 1e-12), torch.float32: (1e-7, 1e-5), torch.bfloat16: (1e-2, 3e-2)}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_moments_and_direction(dtype):
    param = torch.nn.Parameter(torch.zeros(5, 7, dtype=dtype))
    adam = torch.optim.Adam([param], lr=1.0, betas=(0.8, 0.95), foreach=False)
    arithmetic = torch.float32 if dtype == torch.bfloat16 else dtype
    exp_avg, exp_avg_sq = (torch.zeros_like(param.data, dtype=arithmetic) for _ in range(2))
    atol, rtol = TOLERANCE[dtype]
    for step in range(1, 6):
        grad = torch.randn(5, 7, dtype=dtype)
        given = grad.clone()
        param.data.zero_()
        param.grad = grad.clone()
        adam.step()
        rate, factors = adam_factors(step, betas=(0.8, 0.95), eps=1e-8)
        adam_moments(grad.to(arithmetic), exp_avg, exp_avg_sq, factors)
        direction = adam_direction(exp_avg, exp_avg_sq, factors) * rate
        assert torch.equal(grad, given)
        assert direction.dtype == arithmetic
        torch.testing.assert_close(-direction.to(dtype), param.data, atol=atol, rtol=rtol)
        torch.testing.assert_close(exp_avg.to(dtype), adam.state[param]["exp_avg"], atol=atol, rtol=rtol)
        torch.testing.assert_close(exp_avg_sq.to(dtype), adam.state[param]["exp_avg_sq"], atol=atol, rtol=rtol)


def test_factors_may_be_tensors():
    """So that code compiled once serves every step."""
    grad = torch.randn(3, 3)
    numbers, tensors = (torch.zeros(3, 3), torch.zeros(3, 3)), (torch.zeros(3, 3), torch.zeros(3, 3))
    _, factors = adam_factors(3, betas=(0.9, 0.999), eps=1e-8)
    adam_moments(grad, *numbers, factors)
    adam_moments(grad, *tensors, AdamFactors(*torch.tensor(factors)))
    assert torch.equal(numbers[0], tensors[0]) and torch.equal(numbers[1], tensors[1])
    as_tensors = adam_direction(*tensors, AdamFactors(*torch.tensor(factors)))
    assert torch.equal(adam_direction(*numbers, factors), as_tensors)


def test_direction_leaves_the_moments_alone():
    exp_avg, exp_avg_sq = torch.randn(3, 3), torch.rand(3, 3)
    before = exp_avg.clone(), exp_avg_sq.clone()
    adam_direction(exp_avg, exp_avg_sq, adam_factors(2, betas=(0.9, 0.999), eps=1e-8)[1])
    assert torch.equal(exp_avg, before[0]) and torch.equal(exp_avg_sq, before[1])
