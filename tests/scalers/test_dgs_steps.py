"""A function that is right alone and wrong in company, over several steps: resets, bases, and per-layer gamma."""

import numpy as np
import pytest
import torch

from gradscale.bases.adam import adam_direction, adam_factors, adam_moments
from gradscale.bases.lars import lars_momentum, lars_trust_ratio
from gradscale.bases.sgd import sgd_direction, sgd_factors, sgd_momentum
from gradscale.scalers.dgs import (
    collective_importance,
    dgs_factor,
    spikes,
    sum_of_importance,
    take_importance,
    take_level,
    take_weight,
)
from tests.reference.dgs_reference import BASES, FORMS, ReferenceDGS


class Stepper:
    """An optimizer made of the functions, as the step loop will use them."""

    def __init__(self, params, **options):
        self.params = params
        self.o = ReferenceDGS({name: param.numpy() for name, param in params.items()}, **options)  # read for options
        self.first, self.second, self.average = (
            {name: torch.zeros_like(param) for name, param in params.items()} for _ in range(3)
        )
        self.t, self.weight, self.level, self.level_weight, self.was_reset = (
            0,
            0.0,
            torch.zeros((), dtype=torch.float64),
            torch.zeros((), dtype=torch.float64),
            False,
        )

    def importance(self, grads):
        """What `dgs_factor` takes: importances times their weight, and the weight."""
        o = self.o
        if o.decay is None:
            return {name: grad.abs() for name, grad in grads.items()}, 1.0
        spiked = torch.tensor(False)
        if o.reset_spike is not None:
            mean = sum(sum_of_importance(grad) for grad in grads.values()) / o.n
            spiked = spikes(mean, self.level, self.level_weight, o.reset_spike)
            self.level, self.level_weight = take_level(mean, self.level, self.level_weight, o.reset_spike)
        self.was_reset = spiked | (o.reset_every is not None and self.t % o.reset_every == 0)
        keep = torch.where(self.was_reset, torch.tensor(o.reset_keep, dtype=torch.float64), 1.0)
        for name, grad in grads.items():
            take_importance(grad, self.average[name], o.decay, keep)
        self.weight = take_weight(self.weight, o.decay, keep)
        return self.average, self.weight

    def direction(self, name, grad):
        o, param, first, second = self.o, self.params[name], self.first[name], self.second[name]
        decayed = grad if o.base == "adamw" else grad + o.weight_decay * param
        if o.base in ("adam", "adamw"):
            rate, factors = adam_factors(self.t, betas=o.betas, eps=o.base_eps)
            adam_moments(decayed, first, second, factors)
            return adam_direction(first, second, factors), rate
        if o.base == "lars":
            sums = [tensor.double().square().sum() for tensor in (param, grad)]
            options = {"trust_coefficient": o.trust_coefficient, "weight_decay": o.weight_decay, "eps": o.base_eps}
            lars_momentum(decayed, first, ratio=lars_trust_ratio(*sums, **options), momentum=o.momentum)
            return first.clone(), 1.0
        factors = sgd_factors(self.t, momentum=o.momentum, dampening=o.dampening)
        sgd_momentum(decayed, first, factors)
        return sgd_direction(decayed, first, factors, nesterov=o.nesterov), 1.0

    def step(self, grads):
        self.t += 1
        o = self.o
        importance, weight = self.importance(grads)
        sums = {name: sum_of_importance(each) / weight for name, each in importance.items()}
        collective = collective_importance(sum(o.gamma[name] * each for name, each in sums.items()), o.sigma)
        for name, grad in grads.items():
            direction, rate = self.direction(name, grad)
            factor = dgs_factor(
                o.form,
                importance[name],
                collective=collective,
                mean=sums[name] / grad.numel(),
                beta=o.beta,
                eps=o.eps,
                bounds=o.bounds,
                rate=o.lr * rate,
                weight=weight,
            )
            decay = 1 - o.lr * o.weight_decay if o.base == "adamw" else 1.0
            self.params[name].mul_(decay).sub_(direction.mul_(factor))


RUNNING = {
    "today's": {},
    "running": {"importance_decay": 0.9},
    "soft": {"importance_decay": 0.9, "reset_every": 3, "reset_keep": 0.1},
    "hard": {"importance_decay": 0.9, "reset_every": 3, "reset_keep": 0.0},
    "spike": {"importance_decay": 0.9, "reset_spike": 2.0, "reset_keep": 0.0},
    "both": {"importance_decay": 0.9, "reset_spike": 2.0, "reset_every": 4, "reset_keep": 0.3},
}
BASE_OPTIONS = {
    "sgd": {"momentum": 0.9, "nesterov": True, "dampening": 0.0, "weight_decay": 0.1},
    "lars": {"momentum": 0.9, "weight_decay": 0.1, "trust_coefficient": 0.1},
    "adam": {"weight_decay": 0.1},
    "adamw": {"weight_decay": 0.1},
}


def beside_the_reference(dtype, **options):
    """Yield both after each of nine steps; the sixth has large gradients, and one layer has none in the fourth."""
    params = {"matrix": torch.randn(4, 6, dtype=dtype), "bias": torch.randn(6, dtype=dtype)}
    reference = ReferenceDGS({name: param.numpy() for name, param in params.items()}, **options)
    ours = Stepper(params, **options)
    for step in range(1, 10):
        size = {6: 50.0}.get(step, 1.0)
        grads = {name: torch.randn_like(param) * size for name, param in params.items()}
        grads["bias"] *= step != 4
        ours.step(grads)
        reference.step({name: grad.numpy() for name, grad in grads.items()})
        yield ours, reference


@pytest.mark.parametrize("running", RUNNING)
@pytest.mark.parametrize("form", FORMS)
def test_steps_are_those_of_the_reference(form, running):
    resets = []
    for dtype, rtol in ((torch.float64, 1e-11), (torch.float32, 2e-4)):
        options = RUNNING[running] | {"form": form, "momentum": 0.5, "beta": 0.5, "lr": 0.05}
        for ours, reference in beside_the_reference(dtype, **options):
            for name, param in ours.params.items():
                np.testing.assert_allclose(param.numpy(), reference.params[name], rtol=rtol, atol=rtol)
            assert bool(ours.was_reset) == reference.was_reset
            resets += [reference.t] * reference.was_reset
    expected = {"soft": [3, 6, 9], "hard": [3, 6, 9], "spike": [6], "both": [4, 6, 8]}
    assert resets == 2 * expected.get(running, [])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", BASES)
def test_every_base_is_scaled_as_by_the_reference(base, form):
    options = BASE_OPTIONS[base] | {"base": base, "form": form, "gamma": {"matrix": 0.3, "bias": 0.01}, "lr": 0.02}
    for ours, reference in beside_the_reference(torch.float64, **options):
        for name, param in ours.params.items():
            np.testing.assert_allclose(param.numpy(), reference.params[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("base", "theirs", "options"), [
    ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    ("sgd", torch.optim.SGD, {"weight_decay": 0.1}),
    ("adam", torch.optim.Adam, {"weight_decay": 0.1}),
    ("adamw", torch.optim.AdamW, {"weight_decay": 0.1}),
])  # fmt: skip
def test_the_reference_without_a_factor_is_torch(base, theirs, options):
    param = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    reference = ReferenceDGS({"p": param.detach().numpy()}, base=base, form=None, lr=0.02, **options)
    optimizer = theirs([param], lr=0.02, **options)
    for _ in range(5):
        param.grad = torch.randn_like(param)
        optimizer.step()
        reference.step({"p": param.grad.numpy()})
    np.testing.assert_allclose(param.detach().numpy(), reference.params["p"], rtol=1e-12)
