"""The base rule alone against torch's Adam, over several steps and dtypes."""

import pytest
import torch

from gradscale.bases.adam import adam_direction, adam_moments

TOLERANCE = {torch.float64: (1e-14, 1e-12), torch.float32: (1e-7, 1e-5), torch.bfloat16: (1e-3, 1e-2)}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_moments_and_direction(dtype):
    param = torch.nn.Parameter(torch.zeros(5, 7, dtype=dtype))
    adam = torch.optim.Adam([param], lr=1.0, betas=(0.8, 0.95), foreach=False)
    arithmetic = torch.float32 if dtype == torch.bfloat16 else dtype
    exp_avg, exp_avg_sq = torch.zeros_like(param.data), torch.zeros_like(param.data)
    atol, rtol = TOLERANCE[dtype]
    for step in range(1, 6):
        grad = torch.randn(5, 7, dtype=dtype)
        given = grad.clone()
        param.data.zero_()
        param.grad = grad.clone()
        adam.step()
        adam_moments(grad.to(arithmetic), exp_avg, exp_avg_sq, betas=(0.8, 0.95))
        direction = adam_direction(exp_avg, exp_avg_sq, step=step, betas=(0.8, 0.95), eps=1e-8, dtype=arithmetic)
        assert torch.equal(grad, given)
        assert exp_avg.dtype == dtype and direction.dtype == arithmetic
        torch.testing.assert_close(-direction.to(dtype), param.data, atol=atol, rtol=rtol)
        torch.testing.assert_close(exp_avg, adam.state[param]["exp_avg"], atol=atol, rtol=rtol)
        torch.testing.assert_close(exp_avg_sq, adam.state[param]["exp_avg_sq"], atol=atol, rtol=rtol)


def test_direction_leaves_the_moments_alone():
    exp_avg, exp_avg_sq = torch.randn(3, 3), torch.rand(3, 3)
    before = exp_avg.clone(), exp_avg_sq.clone()
    adam_direction(exp_avg, exp_avg_sq, step=2, betas=(0.9, 0.999), eps=1e-8, dtype=torch.float32)
    assert torch.equal(exp_avg, before[0]) and torch.equal(exp_avg_sq, before[1])
