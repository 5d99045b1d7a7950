"""SGG around optimizers of pytorch-optimizer, of which nothing is known here but what it finds out.

Guards against a factor that misses the update or hits the weight decay, against runs that go on differently after a
checkpoint, and against wrapping what cannot be scaled.
"""

import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from gradscale import SGG, OptionError
from tests.adapter.bases import apart, gradients, parameters, run
from tests.optim.training import through_a_file

# Kinds that differ: where the step is counted, what is kept (previous gradients, several means, factors, rotations),
# whether norms, signs or angles come in, and what weight decay does.
STRANGERS = {
    "Adan": {"lr": 1e-2, "weight_decay": 0.1},
    "AdamP": {"lr": 1e-2, "weight_decay": 0.1},
    "ADOPT": {"lr": 1e-2, "weight_decay": 0.1, "weight_decouple": True},
    "AdEMAMix": {"lr": 1e-2, "weight_decay": 0.1},
    "AggMo": {"lr": 1e-2, "weight_decay": 0.1},
    "Amos": {"lr": 1e-2},
    "DiffGrad": {"lr": 1e-2, "weight_decay": 0.1},
    "Grams": {"lr": 1e-2, "weight_decay": 0.1},
    "GrokFastAdamW": {"lr": 1e-2, "weight_decay": 0.1, "grokfast_after_step": 2},
    "LaProp": {"lr": 1e-2, "weight_decay": 0.1},
    "LARS": {"lr": 1.0, "weight_decay": 0.1, "momentum": 0.9},
    "MARS": {"lr": 1e-2, "weight_decay": 0.1},
    "NovoGrad": {"lr": 1e-2, "weight_decay": 0.1},
    "QHAdam": {"lr": 1e-2, "weight_decay": 0.1},
    "SM3": {"lr": 1e-2, "momentum": 0.9},
    "SOAP": {"lr": 1e-2, "weight_decay": 0.1, "precondition_frequency": 3},
    "StableAdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "Tiger": {"lr": 1e-3, "weight_decay": 0.1},
    "Yogi": {"lr": 1e-2, "weight_decay": 0.1},
}
REFUSED = {
    "Prodigy": "its update of one tensor depends on the others",
    "DAdaptAdam": "its update of one tensor depends on the others",
    "MADGRAD": "its update of one tensor depends on the others",  # by a step count that all share
    "ScheduleFreeAdamW": "its state keeps weights",
    "FTRL": "its state keeps weights",
}
FIXED = {"recluster_interval": 1, "scale_decay": 0.0}


def made(name, params):
    return getattr(pytorch_optimizer, name)(params, **STRANGERS[name])


def kept(optimizer, before):
    """What is left of weights when weight decay alone has acted."""
    group = optimizer.param_groups[0]
    decay = group.get("weight_decay", 0.0)
    of_rate = group["lr"] * decay
    shares = {"decoupled": of_rate, "after": of_rate, "divided": of_rate / (1 + of_rate), "fixed": decay}
    return before * (1 - shares.get(optimizer.traits[0].weight_decay, 0.0))


@pytest.mark.parametrize("name", ["AdamP", "SGDP"])
def test_a_projection_is_no_elementwise_update_though_random_gradients_do_not_show_it(name):
    assert not SGG(getattr(pytorch_optimizer, name)(parameters(), lr=1e-2)).traits[0].elementwise


@pytest.mark.parametrize("name", STRANGERS)
def test_it_trains(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 3))
    inputs, targets = torch.randn(64, 12), torch.randn(64, 3)
    optimizer = SGG(made(name, model.parameters()), recluster_interval=5, scale_decay=0.5, module=model)
    losses = []
    for _ in range(60):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert {layer.name for layer in optimizer.grouping_report.layers} == {"0.weight", "2.weight"}
    assert any(scale != 1 for layer in optimizer.grouping_report.layers for scale in layer.scales)


@pytest.mark.parametrize("name", STRANGERS)
def test_scales_of_1_leave_it_as_it_is_alone(name):
    optimizer = SGG(made(name, parameters(torch.float64)), **FIXED, scale_bounds=(1.0, 1.0))
    alone = made(name, parameters(torch.float64))
    for found, right in zip(run(optimizer), run(alone), strict=True):
        assert apart(found, right) < 1e-9
    assert optimizer.grouping_report.step == 7


@pytest.mark.parametrize("name", STRANGERS)
def test_scales_of_2_double_the_update_and_not_the_weight_decay(name):
    params = parameters(torch.float64)
    optimizer = SGG(made(name, params), **FIXED, scale_bounds=(2.0, 2.0))
    alone = made(name, parameters(torch.float64))
    run(optimizer, range(1))
    run(alone, range(1))
    start = [param.detach().clone() for param in params]
    once, twice = run(alone, range(1, 2))[0], run(optimizer, range(1, 2))[0]
    for before, one, two in zip(start, once, twice, strict=True):
        rest, factor = kept(optimizer, before), 2 if before.dim() > 1 else 1
        assert torch.allclose(two - rest, factor * (one - rest), rtol=1e-7, atol=1e-12)
        assert float((one - rest).norm()) > 0


@pytest.mark.parametrize("name", STRANGERS)
def test_a_run_that_is_saved_in_the_middle_goes_on_bit_for_bit(name):
    params = parameters()
    optimizer = SGG(made(name, params), recluster_interval=2, scale_decay=0.5)
    run(optimizer, range(5))
    saved, weights = through_a_file(optimizer.state_dict()), [param.detach().clone() for param in params]
    expected = run(optimizer, range(5, 9))
    resumed = SGG(made(name, [nn.Parameter(weight) for weight in weights]), recluster_interval=2, scale_decay=0.5)
    resumed.load_state_dict(saved)
    for found, right in zip(run(resumed, range(5, 9)), expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(found, right, strict=True))


@pytest.mark.parametrize("name", STRANGERS)
def test_schedulers_and_param_groups_added_in_mid_run_work(name):
    """Beside the same run of the plain optimizer: until the first grouping they are one."""
    courses, rates = [], []
    for wrap in (lambda base: SGG(base, recluster_interval=100), lambda base: base):
        first, *others = parameters(torch.float64)
        optimizer = wrap(made(name, [first]))
        schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        course = []
        for step in range(6):
            if step == 3:
                optimizer.add_param_group({"params": others, "lr": 1e-3})
            shown = [first] if step < 3 else [first, *others]
            for param, grad in zip(shown, gradients(step, shown), strict=True):
                param.grad = grad
            optimizer.step()
            if step < 3:  # torch's schedulers do not know groups that were added
                schedule.step()
            course.append([param.detach().clone() for param in (first, *others)])
        courses.append(course)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == rates[1] and rates[0][0] <= STRANGERS[name]["lr"] / 4
    assert all(apart(mine, theirs) < 1e-9 for mine, theirs in zip(*courses, strict=True))
    assert apart(courses[0][2], courses[0][5]) > 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scaled_is_refused_with_the_reason(name):
    base = getattr(pytorch_optimizer, name)(parameters())
    with pytest.raises(OptionError) as caught:
        SGG(base)
    assert REFUSED[name] in str(caught.value) and name in str(caught.value)
