"""Bad gradients, and very small and large ones: NaN and inf reach the parameters, and nothing else makes any."""

import warnings

import pytest
import torch

from gradscale.optim.dgs_scaler import HISTORY, IMPORTANCE
from tests.optim.kinds import DGSS
from tests.reference.dgs_reference import FORMS

BAD = [float("nan"), float("inf"), -float("inf")]
RUNNING = {"importance_decay": 0.5, "reset_every": 2, "reset_spike": 2.0, "reset": "hard"}
options_of_importance = pytest.mark.parametrize("options", [{}, RUNNING], ids=["today", "running"])


@pytest.fixture(autouse=True)
def quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def make(cls, form, *, count=3, **options):
    params = [torch.nn.Parameter(torch.randn(6, 7)) for _ in range(count)]
    return params, cls(params, lr=1e-3, form=form, **options)


def step(params, optimizer, bad=None):
    for param in params:
        param.grad = torch.randn_like(param)
    if bad is not None:
        params[1].grad[2, 3] = bad
    optimizer.step()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", DGSS)
@options_of_importance
def test_a_bad_gradient_reaches_its_parameter_and_stays(options, cls, form, bad):
    params, optimizer = make(cls, form, **options)
    step(params, optimizer)
    step(params, optimizer, bad)
    assert not params[1][2, 3].isfinite()
    for _ in range(3):  # also through the reset after it
        step(params, optimizer)
    assert not params[1][2, 3].isfinite()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", DGSS)
@options_of_importance
def test_it_spreads_as_far_as_sums_reach(options, cls, form, bad):
    """To all parameters where there is one sum, to its layer where there is one for each, else to nothing else."""
    params, optimizer = make(cls, form, **options)
    step(params, optimizer, bad)
    whole_layer = form == "normalized" or cls.__name__ == "DGSLARS"
    everything = form in ("equation", "full")
    assert not params[1][2, 3].isfinite()
    assert bool(params[0].isfinite().any()) == bool(params[2].isfinite().all()) == (not everything)
    others = torch.ones(6, 7, dtype=torch.bool)
    others[2, 3] = False
    assert bool(params[1][others].isfinite().any()) == (not whole_layer and not everything)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("cls", DGSS)
def test_no_reset_comes_of_it(cls, bad):
    params, optimizer = make(cls, "importance", importance_decay=0.5, reset_spike=1.5, reset="hard")
    for _ in range(2):
        step(params, optimizer)
    levels = [optimizer.state[param][HISTORY][2:].clone() for param in params]
    step(params, optimizer, bad)
    for param, level in zip(params, levels, strict=True):
        history = optimizer.state[param][HISTORY]
        assert torch.equal(history[2:], level)
        assert history[0].item() == 0.875  # three gradients, none of which made another weigh less
    assert not optimizer.state[params[1]][IMPORTANCE][2, 3].isfinite()
    assert optimizer.state[params[0]][IMPORTANCE].isfinite().all()


@pytest.mark.parametrize("magnitude", [1e-45, 1e-38, 1e-20, 1e20, 1e37])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", DGSS)
@options_of_importance
def test_extreme_magnitudes_stay_finite(options, cls, form, magnitude):
    params, optimizer = make(cls, form, **options)
    before = [param.detach().clone() for param in params]
    for _ in range(4):
        for index, param in enumerate(params):
            param.grad = torch.randn_like(param) * (magnitude if index < 2 else 1.0)
        params[0].grad[0] = 0.0
        optimizer.step()
    assert all(param.isfinite().all() for param in params)
    assert not torch.equal(params[2], before[2]) or form in ("equation", "full")  # their sum is enormous


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", DGSS)
@options_of_importance
def test_zero_gradients_move_nothing_and_spoil_nothing(options, cls, form):
    params, optimizer = make(cls, form, weight_decay=0.0, **options)
    before = [param.detach().clone() for param in params]
    for _ in range(3):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert all(torch.equal(param, start) for param, start in zip(params, before, strict=True))
    step(params, optimizer)
    assert all(param.isfinite().all() and (param != start).any() for param, start in zip(params, before, strict=True))


def test_a_spike_after_silence_is_none():
    """A level of zeros would call the first gradient a spike."""
    params, optimizer = make(DGSS[0], "importance", importance_decay=0.5, reset_spike=1.5, reset="hard")
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    step(params, optimizer)
    assert optimizer.state[params[0]][HISTORY][0].item() == 0.75
