"""The base rule alone against torch's SGD: a buffer that starts dampened, or looks ahead twice, still trains."""

import pytest
import torch

from gradscale.bases.sgd import SGDFactors, sgd_direction, sgd_factors, sgd_momentum

TOLERANCE = {torch.float64: (1e-15, 1e-13), torch.float32: (1e-6, 1e-6)}
OPTIONS = [
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.5, "dampening": 0.5},
    {"momentum": 0.0},
    {"momentum": 0.0, "dampening": 0.3},
]
# Products with powers of two are exact, so torch's one rounding of a product and a sum falls where our second one does.
BIT_FOR_BIT = [
    {"momentum": 0.9},
    {"momentum": 0.0, "dampening": 0.3},
    {"momentum": 0.5, "dampening": 0.75},
    {"momentum": 0.5, "nesterov": True},
]


def directions(dtype, *, momentum, dampening=0.0, nesterov=False):
    """Buffers and directions of five steps: ours, and torch's, whose parameter starts each step at 0."""
    param = torch.nn.Parameter(torch.zeros(37, 7, dtype=dtype))
    options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    theirs = torch.optim.SGD([param], lr=1.0, **options, foreach=False)
    buffer = torch.zeros_like(param.data)
    for step in range(1, 6):
        grad = torch.randn(37, 7, dtype=dtype)
        given = grad.clone()
        param.data.zero_()
        param.grad = grad.clone()
        theirs.step()
        factors = sgd_factors(step, momentum=momentum, dampening=dampening)
        sgd_momentum(grad, buffer, factors)
        before = buffer.clone()
        direction = sgd_direction(grad, buffer, factors, nesterov=nesterov)
        assert torch.equal(grad, given) and torch.equal(buffer, before)
        assert direction.dtype == dtype and direction.data_ptr() != buffer.data_ptr()
        expected = theirs.state[param].get("momentum_buffer") if momentum else grad
        yield buffer, expected, direction, -param.data


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_buffer_and_direction_are_those_of_torch(options, dtype):
    atol, rtol = TOLERANCE[dtype]
    for buffer, their_buffer, direction, theirs in directions(dtype, **options):
        torch.testing.assert_close(buffer, their_buffer, atol=atol, rtol=rtol)
        torch.testing.assert_close(direction, theirs, atol=atol, rtol=rtol)


@pytest.mark.parametrize("options", BIT_FOR_BIT, ids=str)
def test_bit_for_bit_where_products_are_exact_or_there_are_none(options):
    for buffer, their_buffer, direction, theirs in directions(torch.float32, **options):
        assert torch.equal(buffer, their_buffer) and torch.equal(direction, theirs)


def test_by_hand():
    """mu = 0.5, dampening 0.25: b1 = 4, b2 = 0.5 * 4 + 0.75 * 2 = 3.5; looking ahead 2 + 0.5 * 3.5 = 3.75."""
    buffer = torch.zeros(1)
    sgd_momentum(torch.tensor([4.0]), buffer, sgd_factors(1, momentum=0.5, dampening=0.25))
    assert buffer.item() == 4.0
    factors = sgd_factors(2, momentum=0.5, dampening=0.25)
    sgd_momentum(torch.tensor([2.0]), buffer, factors)
    assert buffer.item() == 3.5
    assert sgd_direction(torch.tensor([2.0]), buffer, factors, nesterov=False).item() == 3.5
    assert sgd_direction(torch.tensor([2.0]), buffer, factors, nesterov=True).item() == 3.75


@pytest.mark.parametrize("nesterov", [False, True])
def test_factors_may_be_tensors(nesterov):
    """So that code compiled once serves every step, the first one included."""
    grad, numbers, tensors = torch.randn(3, 3), torch.zeros(3, 3), torch.zeros(3, 3)
    for step in (1, 2):
        factors = sgd_factors(step, momentum=0.9, dampening=0.3)
        as_tensors = SGDFactors(*torch.tensor(factors))
        sgd_momentum(grad, numbers, factors)
        sgd_momentum(grad, tensors, as_tensors)
        assert torch.equal(numbers, tensors)
        found = [sgd_direction(grad, numbers, each, nesterov=nesterov) for each in (factors, as_tensors)]
        assert torch.equal(*found)
