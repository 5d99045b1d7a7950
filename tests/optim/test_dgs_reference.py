"""Every form on every base against the slow float64 reference, in every dtype and by both kernels."""

import numpy as np
import pytest
import torch

from gradscale.optim.dgs import DGSLARS, DGSSGD, DGSAdam, DGSAdamW
from gradscale.optim.dgs_scaler import HISTORY, IMPORTANCE
from gradscale.optim.kernels import eager
from tests.reference.dgs_reference import FORMS, ReferenceDGS

CLASSES = {"sgd": DGSSGD, "lars": DGSLARS, "adam": DGSAdam, "adamw": DGSAdamW}
SHAPES = {"matrix": (40, 30), "vector": (7,), "filters": (3, 2, 2, 2), "scalar": (), "four": (4,)}
# What one step loses: half a unit in the last place of values of order 1, and what the formulas lose before it.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
COMMON = {"lr": 0.05, "weight_decay": 0.1, "beta": 2.0, "sigma": 0.3, "factor_bounds": (0.5, 1.5)}
OWN = {"sgd": {"momentum": 0.9, "nesterov": True}, "lars": {"lr": 0.5, "momentum": 0.9, "trust_coefficient": 0.1}}
RUNNING = {"importance_decay": 0.8, "reset_every": 3, "reset_spike": 3.0, "reset_decay": 0.2}


def make(base, form, *, dtype=torch.float64, kernel="eager", **options):
    """The optimizer and its reference, with named parameters that are equal."""
    generator = torch.Generator().manual_seed(0)
    params = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()
    }
    options = {**COMMON, **OWN.get(base, {}), **options}
    eps = {"eps": 0.05} if base in OWN else {"importance_eps": 0.05}
    optimizer = CLASSES[base](list(params.items()), form=form, kernel=kernel, **eps, **options)
    options["bounds"] = options.pop("factor_bounds")
    options.pop("maximize", None)  # the reference's gradients are negated instead
    kept = options.pop("reset_decay", 0.1)
    options["reset_keep"] = kept if options.pop("reset", "soft") == "soft" else 0.0
    if base == "lars":
        options |= {"trust_vectors": False, "base_eps": 0.0}
    reference = ReferenceDGS(
        {name: as_array(param) for name, param in params.items()}, base=base, form=form, eps=0.05, **options
    )
    return params, optimizer, reference


def as_array(tensor):
    return tensor.detach().double().numpy().copy()


def grads_of(number, dtype):
    """Gradients of one step: layers of different scales, and a spike in the fifth step."""
    generator = torch.Generator().manual_seed(100 + number)
    loud = 10.0 if number == 4 else 1.0
    return {
        name: (torch.randn(shape, generator=generator) * loud * 0.2 * (index + 1)).to(dtype)
        for index, (name, shape) in enumerate(SHAPES.items())
    }


def start_from(reference, params, optimizer):
    """Give the reference the optimizer's own numbers, so that rounding does not feed on itself."""
    for name, param in params.items():
        reference.params[name] = as_array(param)
        state = optimizer.state[param]
        for key, kept in (("momentum_buffer", "first"), ("exp_avg", "first"), ("exp_avg_sq", "second")):
            if key in state:
                getattr(reference, kept)[name] = as_array(state[key])


def compare(params, optimizer, reference, *, dtype, steps=6, tolerance=None):
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    moved = dict.fromkeys(params, 0.0)
    for number in range(steps):
        if dtype != torch.float64:
            start_from(reference, params, optimizer)
        before = {name: as_array(param) for name, param in params.items()}
        for name, grad in grads_of(number, dtype).items():
            params[name].grad = grad
        optimizer.step()
        reference.step({name: as_array(param.grad) for name, param in params.items()})
        for name, param in params.items():
            np.testing.assert_allclose(
                as_array(param), reference.params[name], rtol=tolerance, atol=tolerance, err_msg=name
            )
            moved[name] = max(moved[name], float(np.abs(as_array(param) - before[name]).max()))
    assert min(moved.values()) > tolerance  # so that a step left out would be seen


@pytest.mark.parametrize("running", [{}, RUNNING], ids=["today", "running"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", CLASSES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_steps_are_those_of_the_reference(dtype, base, form, running, monkeypatch):
    monkeypatch.setattr(eager, "ON_CPU", 1000)  # several pieces, the last one short
    params, optimizer, reference = make(base, form, dtype=dtype, **running)
    # The running importance is kept in float32 whatever the dtype.
    compare(params, optimizer, reference, dtype=dtype, tolerance=1e-6 if running and dtype == torch.float64 else None)


COMPILED = [
    *((base, form, torch.float32, RUNNING if at % 2 else {}) for base in CLASSES for at, form in enumerate(FORMS)),
    ("sgd", "full", torch.bfloat16, RUNNING),
    ("adamw", "normalized", torch.float16, {}),
    ("lars", "equation", torch.float64, {}),
]


@pytest.mark.parametrize(("base", "form", "dtype", "running"), COMPILED)
def test_compiled_steps_are_those_of_the_reference(base, form, dtype, running):
    params, optimizer, reference = make(base, form, dtype=dtype, kernel="compiled", **running)
    compare(params, optimizer, reference, dtype=dtype)


RESETS = {
    "never": ({}, []),
    "soft, periodic": ({"reset_every": 2}, [2, 4, 6, 8]),
    "hard, periodic": ({"reset_every": 3, "reset": "hard"}, [3, 6]),
    "soft, spike": ({"reset_spike": 3.0}, [5]),
    "hard, spike": ({"reset_spike": 3.0, "reset": "hard"}, [5]),
    "both": ({"reset_spike": 3.0, "reset_every": 4}, [4, 5, 8]),
    "no such spike": ({"reset_spike": 20.0}, []),
}


@pytest.mark.parametrize("name", RESETS)
@pytest.mark.parametrize("form", ["full", "normalized"])
def test_resets_are_those_of_the_reference(name, form):
    options, expected = RESETS[name]
    options = {"importance_decay": 0.9, "reset_decay": 0.1, **options}
    params, optimizer, reference = make("sgd", form, **options)
    resets = []
    for number in range(8):
        for key, grad in grads_of(number, torch.float64).items():
            params[key].grad = grad
        weight = None if number == 0 else optimizer.state[params["matrix"]][HISTORY][0].item()
        optimizer.step()
        reference.step({key: as_array(param.grad) for key, param in params.items()})
        if weight is not None and optimizer.state[params["matrix"]][HISTORY][0].item() < 0.9 * weight + 0.1 - 1e-6:
            resets.append(number + 1)
        assert reference.was_reset == (number + 1 in expected)
        for key, param in params.items():
            np.testing.assert_allclose(as_array(param), reference.params[key], rtol=1e-6, atol=1e-6)
    assert resets == expected
    state = optimizer.state[params["matrix"]]
    importance = as_array(state[IMPORTANCE]) / state[HISTORY][0].item()
    past = sum(w * each["matrix"] for w, each in zip(reference.weights, reference.past, strict=True))
    np.testing.assert_allclose(importance, past / sum(reference.weights), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["equation", "full"])
@pytest.mark.parametrize("running", [{}, RUNNING], ids=["today", "running"])
def test_gammas_of_groups_are_those_of_the_reference(form, running):
    params, optimizer, reference = make("sgd", form, **running)
    gammas = dict(zip(params, (0.0, 0.01, 1.0, 0.5, None), strict=True))
    groups = [{"params": [(name, param)], "gamma": gammas[name]} for name, param in params.items()]
    defaults = {name: value for name, value in optimizer.defaults.items() if name in optimizer.param_groups[0]}
    defaults = {name: value for name, value in defaults.items() if name not in ("scaled", "gamma", "total_steps")}
    optimizer = DGSSGD(groups, **defaults)
    reference.gamma = {name: 1 / reference.n if value is None else value for name, value in gammas.items()}
    compare(params, optimizer, reference, dtype=torch.float64, tolerance=1e-6)


@pytest.mark.parametrize(
    "options", [{"momentum": 0.9, "nesterov": False, "dampening": 0.4}, {"momentum": 0.0, "nesterov": False}]
)
@pytest.mark.parametrize("form", FORMS)
def test_other_options_of_sgd_are_those_of_the_reference(form, options):
    params, optimizer, reference = make("sgd", form, **options)
    compare(params, optimizer, reference, dtype=torch.float64)


@pytest.mark.parametrize("base", ["adam", "adamw"])
def test_other_options_of_adam_are_those_of_the_reference(base):
    params, optimizer, reference = make(base, "full", betas=(0.5, 0.9))
    compare(params, optimizer, reference, dtype=torch.float64)


@pytest.mark.parametrize("base", CLASSES)
def test_ascent_is_descent_along_the_negated_gradient(base):
    ups, up, _ = make(base, "full", maximize=True, **RUNNING)
    downs, down, _ = make(base, "full", **RUNNING)
    for number in range(4):
        for name, grad in grads_of(number, torch.float64).items():
            ups[name].grad, downs[name].grad = grad, -grad
        up.step()
        down.step()
    assert all(torch.equal(ups[name], downs[name]) for name in SHAPES)


@pytest.mark.parametrize("base", CLASSES)
def test_without_its_sum_the_equation_is_the_base_alone(base):
    """With gamma = 0, sigma = 1 and beta = 1 the factor is 1. LARS has no other plain one to compare with."""
    params, optimizer, reference = make(base, "equation", gamma=0.0, sigma=1.0, beta=1.0)
    reference.form = None
    compare(params, optimizer, reference, dtype=torch.float64, tolerance=1e-13)
