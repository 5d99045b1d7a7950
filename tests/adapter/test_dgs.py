"""DGS around other optimizers, against the named optimizers, which were held to the float64 reference.

Guards against a factor on weight decay, on the wrong gradient, or on an update that has lost its digits.
"""

import pytest
import torch

from gradscale import DGS, DGSSGD, DGSAdam, DGSAdamW
from tests.adapter.bases import BASES, SHAPES, apart, gradients, parameters, run

FORMS = {
    "equation": {"form": "equation", "sigma": 0.5, "beta": 2.0},
    "importance": {"form": "importance", "eps": 1e-2},
    "full": {"form": "full", "eps": 1e-2, "sigma": 0.3, "gamma": 0.001},
    "normalized": {"form": "normalized", "eps": 0.1, "factor_bounds": (0.5, 3.0)},
    "running": {"form": "full", "eps": 1e-2, "importance_decay": 0.8, "reset_every": 3, "reset_spike": 1.5},
    "running, hard": {"form": "normalized", "eps": 0.1, "importance_decay": 0.8, "reset_every": 3, "reset": "hard"},
}
NAMED = {
    "SGD": (torch.optim.SGD, DGSSGD, {"lr": 0.01, "weight_decay": 0.1}),
    "momentum": (torch.optim.SGD, DGSSGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "maximize": (torch.optim.SGD, DGSSGD, {"lr": 0.01, "momentum": 0.9, "maximize": True, "weight_decay": 0.1}),
    "AdamW": (torch.optim.AdamW, DGSAdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    "Adam": (torch.optim.Adam, DGSAdam, {"lr": 1e-3, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_it_is_the_named_optimizer(name, form, dtype):
    base, named, options = NAMED[name]
    own = dict(FORMS[form])
    wrapped = run(DGS(base(parameters(dtype), **options), **own))
    if "Adam" in name:
        own["importance_eps"] = own.pop("eps", 1e-8)
    expected = run(named(parameters(dtype), **options, **own))
    start = parameters(dtype)
    for found, right in zip(wrapped, expected, strict=True):
        # Of what a step moves; rounding to the weights is the same for both.
        assert apart(found, right) <= (1e-13 if dtype == torch.float64 else 1e-6) * max(1.0, apart(right, start))


@pytest.mark.parametrize("name", BASES)
def test_a_factor_of_1_leaves_the_base(name):
    expected = run(BASES[name](parameters()))
    found = run(DGS(BASES[name](parameters()), form="equation", sigma=1.0, gamma=0.0))
    assert apart(found[-1], expected[-1]) <= 5e-7  # a few roundings of float32
    assert apart(expected[-1], parameters()) > 1e-4


@pytest.mark.parametrize("name", BASES)
def test_a_factor_of_2_moves_twice_the_update_and_decays_once(name):
    """Of the first step: later ones start elsewhere."""
    params = parameters(torch.float64)
    base = BASES[name](params)
    optimizer = DGS(base, form="equation", sigma=0.5, gamma=0.0)
    traits, group = optimizer.traits[0], base.param_groups[0]
    decay = group.get("weight_decay", 0) * group["lr"] if traits.weight_decay == "decoupled" else 0.0
    (once,) = run(BASES[name](parameters(torch.float64)), range(1))
    (twice,) = run(optimizer, range(1))
    for start, one, two in zip(parameters(torch.float64), once, twice, strict=True):
        kept = start.detach() * (1 - decay)
        assert torch.allclose(two - kept, 2 * (one - kept), rtol=1e-9, atol=1e-15)
        assert not torch.equal(one, start)


def test_small_updates_keep_their_digits():
    """The update of the base is 1e-9 of the weights, below what float32 tells apart from 0 beside them."""
    params = [torch.nn.Parameter(torch.full((4, 4), 1.0))]
    optimizer = DGS(torch.optim.SGD(params, lr=1e-3), form="importance", eps=1e-12)
    params[0].grad = torch.full((4, 4), 1e-6)
    optimizer.step()
    assert torch.allclose(params[0], torch.full((4, 4), 1 - 1e-3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_weights_are_computed_with_in_float32(dtype):
    options = {"lr": 0.05, "weight_decay": 0.0}
    wrapped = run(DGS(torch.optim.SGD(parameters(dtype), **options), form="normalized"))
    named = run(DGSSGD(parameters(dtype), **options, form="normalized"))
    moved = apart(named[-1], parameters(dtype))
    assert apart(wrapped[-1], named[-1]) < 0.05 * moved


def test_importance_is_read_before_the_base_changes_the_gradient():
    """One of them zeroes it."""
    found = run(DGS(BASES["counts in its groups"](parameters()), form="normalized"))
    expected = run(
        DGS(torch.optim.AdamW(parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1), form="normalized")
    )
    assert apart(found[-1], expected[-1]) < 1e-5


def test_the_collective_importance_is_that_of_all_groups():
    """With options of their own in groups, by names with a prefix."""
    first, second, third = parameters()
    base = torch.optim.SGD(
        [{"params": [first], "dgs_gamma": 0.01}, {"params": [second], "dgs_form": "importance"}, {"params": [third]}],
        lr=0.01,
    )
    wrapped = DGS(base, eps=0.01)
    first, second, third = parameters()
    named = DGSSGD(
        [{"params": [first], "gamma": 0.01}, {"params": [second], "form": "importance"}, {"params": [third]}],
        lr=0.01,
        eps=0.01,
    )
    assert apart(run(wrapped)[-1], run(named)[-1]) < 1e-6


def test_groups_that_are_not_scaled_are_those_of_the_base():
    params = parameters()
    wrapped = DGS(torch.optim.SGD([{"params": params[:1], "dgs_scaled": False}, {"params": params[1:]}], lr=0.1))
    plain = run(torch.optim.SGD(parameters(), lr=0.1))[-1]
    found = run(wrapped)[-1]
    assert apart(found[:1], plain[:1]) < 1e-6 < apart(found[1:], plain[1:])


def test_parameters_without_a_gradient_wait():
    params = parameters()
    optimizer = DGS(torch.optim.Adam(params, lr=0.1), form="normalized", importance_decay=0.5)
    for param, grad in list(zip(params, gradients(0, params), strict=True))[1:]:
        param.grad = grad
    optimizer.step()
    assert torch.equal(params[0], parameters()[0]) and not torch.equal(params[1], parameters()[1])
    assert len(optimizer.state.get(params[0], {})) == 0


def test_what_is_held_besides_does_not_grow_with_the_model():
    from gradscale.bench.allocations import peak_extra_bytes

    extra = {}
    for count in (2, 12):
        params = parameters(shapes=[(400, 300)] * count)
        optimizer = DGS(torch.optim.AdamW(params, lr=1e-3, foreach=True), form="full")
        run(optimizer, range(2))
        extra[count] = peak_extra_bytes(optimizer.step, torch.device("cpu"))
    one = 400 * 300 * 4
    assert extra[12] < extra[2] + one // 10
    assert extra[12] < 7 * one  # a copy, the factors, and what torch's foreach AdamW holds of one tensor


def test_shapes_are_those_that_weights_have():
    assert {len(shape) for shape in SHAPES} == {1, 2}
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in [(), (3,), (2, 3), (2, 2, 2), (2, 2, 2, 2)]]
    named = [torch.nn.Parameter(param.detach().clone()) for param in params]
    found = run(DGS(torch.optim.SGD(params, lr=0.1), form="normalized"))[-1]
    assert apart(found, run(DGSSGD(named, lr=0.1, form="normalized"))[-1]) < 1e-6
