"""State and param groups of the adapters. Guards against a resumed run that is another one, and half-loaded state."""

import pickle
from functools import partial

import pytest
import torch

from gradscale import DGS, SGG, OptionError
from tests.adapter.bases import BASES, apart, copied, gradients, parameters, run
from tests.optim.training import through_a_file

ADAPTERS = {
    "DGS": partial(DGS, form="full", eps=0.01, importance_decay=0.8, reset_every=4),
    "DGS, nothing kept": partial(DGS, form="normalized"),
    "SGG": partial(SGG, recluster_interval=2),
    "SGG, live": partial(SGG, recluster_interval=3, labels="live"),
}
SOME = ["SGD", "SGD, momentum", "AdamW", "Adafactor", "counts in its groups"]


def equal(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("base", SOME)
@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name, base, dtype):
    make = ADAPTERS[name]
    params = parameters(dtype)
    optimizer = make(BASES[base](params))
    run(optimizer, range(4))
    saved, weights = through_a_file(optimizer.state_dict()), [param.detach().clone() for param in params]
    expected = run(optimizer, range(4, 8))
    others = [torch.nn.Parameter(weight) for weight in weights]
    resumed = make(BASES[base](others))
    resumed.load_state_dict(saved)
    for found, right in zip(run(resumed, range(4, 8)), expected, strict=True):
        assert equal(found, right)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("how", [copied, lambda value: pickle.loads(pickle.dumps(value))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_alike_and_alone(name, how):
    optimizer = ADAPTERS[name](BASES["AdamW"](parameters()))
    run(optimizer, range(4))
    before = [param.detach().clone() for param in optimizer.param_groups[0]["params"]]
    copy = how(optimizer)
    assert copy.param_groups is copy.base_optimizer.param_groups
    found = run(copy, range(4, 8))[-1]
    assert equal(before, optimizer.param_groups[0]["params"])
    assert equal(found, run(optimizer, range(4, 8))[-1])


@pytest.mark.parametrize("name", ["DGS", "SGG"])
def test_the_state_of_the_plain_base_loads_and_it_says_what_starts_anew(name):
    plain = BASES["AdamW"](parameters())
    run(plain, range(3))
    optimizer = ADAPTERS[name](BASES["AdamW"](parameters()))
    with pytest.warns(UserWarning, match="the loaded state has no (groups|running importance) for . layers"):
        optimizer.load_state_dict(plain.state_dict())
    assert torch.equal(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"], torch.tensor(3.0))
    assert optimizer.param_groups[0]["lr"] == 1e-2 and len(run(optimizer, range(3, 6))) == 3


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_plain_base_loads_the_state_of_the_adapter(name):
    """Whoever leaves the adapter off again goes on."""
    optimizer = ADAPTERS[name](BASES["AdamW"](parameters()))
    run(optimizer, range(4))
    plain = BASES["AdamW"](parameters())
    plain.load_state_dict(optimizer.state_dict())
    assert len(run(plain, range(4, 6))) == 2


DAMAGES = {
    "importance with shape": ("DGS", lambda saved: saved["state"][0].update(dgs_importance=torch.zeros(3))),
    "values outside": ("DGS", lambda saved: saved["state"][1]["dgs_importance_history"].fill_(-1.0)),
    "labels with values": ("SGG", lambda saved: saved["state"][0]["sgg_labels"].fill_(9)),
    "scales with": ("SGG", lambda saved: saved["state"][0].update(sgg_scales="high")),
    "dgs_form='x' is": ("DGS", lambda saved: saved["param_groups"][0].update(dgs_form="x")),
    "sgg_steps=-1": ("SGG", lambda saved: saved["param_groups"][0].update(sgg_steps=-1)),
    "a different number of parameter groups": ("SGG", lambda saved: saved["param_groups"].append({"params": []})),
    "this is no optimizer state": ("DGS", lambda saved: saved.pop("state")),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_refused_and_changes_nothing(message):
    name, damage = DAMAGES[message]
    optimizer = ADAPTERS[name](BASES["AdamW"](parameters()))
    run(optimizer, range(4))
    saved = copied(optimizer.state_dict())
    damage(saved)
    before = copied(optimizer)
    with pytest.raises(ValueError, match=message.replace("dgs_form='x' is", "form='x' is not allowed")):
        optimizer.load_state_dict(saved)
    optimizer_weights = run(optimizer, range(4, 8))[-1]
    assert equal(run(before, range(4, 8))[-1], optimizer_weights)


def test_saved_options_count_as_in_torch():
    optimizer = DGS(BASES["SGD"](parameters()), form="normalized", factor_bounds=(0.5, 2.0))
    run(optimizer, range(1))
    other = DGS(BASES["SGD"](parameters()))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["dgs_form"] == "normalized"
    assert other.param_groups[0]["dgs_factor_bounds"] == (0.5, 2.0)


def test_param_groups_state_and_schedulers_are_the_bases():
    base = BASES["AdamW"](parameters())
    optimizer = DGS(base, form="normalized")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    run(optimizer, range(1))
    schedule.step()
    assert base.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 5e-3
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state
    groups = [dict(group) for group in base.param_groups]
    optimizer.param_groups = groups
    assert base.param_groups is groups
    assert isinstance(optimizer, torch.optim.Optimizer) and optimizer.defaults is base.defaults
    optimizer.zero_grad()
    assert all(param.grad is None for param in base.param_groups[0]["params"])


def test_hooks_of_the_adapter_are_called_once_a_step():
    optimizer, told = DGS(BASES["SGD"](parameters())), []
    optimizer.register_step_pre_hook(lambda *_: told.append("before"))
    optimizer.register_step_post_hook(lambda *_: told.append("after"))
    optimizer.register_state_dict_post_hook(lambda *_: told.append("saved"))
    optimizer.register_load_state_dict_post_hook(lambda *_: told.append("loaded"))
    run(optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert told == ["before", "after", "saved", "loaded"]


def test_a_group_can_be_added_in_mid_run():
    first, *others = parameters()
    optimizer = DGS(torch.optim.SGD([first], lr=0.1), form="normalized")
    for param, grad in zip([first], gradients(0, [first]), strict=True):
        param.grad = grad
    optimizer.step()
    optimizer.add_param_group({"params": others, "lr": 0.01, "dgs_form": "importance"})
    assert [group["dgs_form"] for group in optimizer.param_groups] == ["normalized", "importance"]
    assert [group["dgs_steps"] for group in optimizer.param_groups] == [1, 1]
    assert apart(run(optimizer, range(1, 2))[-1], parameters()) > 0
    before = len(optimizer.param_groups)
    with pytest.raises(OptionError, match="unknown option dgs_from of a param group, did you mean 'form'"):
        optimizer.add_param_group({"params": parameters(), "dgs_from": "full"})
    assert len(optimizer.param_groups) == before == len(optimizer.traits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(DGS, form="all"), "form='all' is not allowed"),
        (partial(DGS, form="importance", eps=0.0), "eps=0 is not allowed with form='importance'"),
        (partial(SGG, n_clusters=0), "n_clusters=0 is not allowed"),
        (partial(SGG, recluster_interval=0.1), "give total_steps="),
    ],
)
def test_wrong_options_leave_the_base_as_it_was(make, message):
    base = BASES["AdamW"](parameters())
    keys = set(base.param_groups[0])
    with pytest.raises(OptionError) as caught:
        make(base)
    assert message in str(caught.value) and set(base.param_groups[0]) == keys


def test_a_step_that_fails_leaves_the_weights():
    """The base is shown zeros in their place for a moment."""
    params = parameters()
    base = BASES["AdamW"](params)
    optimizer = DGS(base, form="normalized")
    before = [param.detach().clone() for param in params]
    base.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(optimizer, range(1))
    assert equal(before, params) and len(base.param_groups[0]["params"]) == 3


def test_a_closure_is_called_once_and_sparse_gradients_are_refused():
    params = parameters()
    optimizer, calls = DGS(BASES["SGD"](params)), []

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = sum(param.square().sum() for param in params)
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) > 0 and calls == [True]
    table = torch.nn.Embedding(5, 3, sparse=True)
    other = DGS(torch.optim.SGD(table.parameters(), lr=0.1))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        other.step()
