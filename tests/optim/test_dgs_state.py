"""State of DGS: the running importance, and what is kept of each layer, is saved whole, starts anew, or is refused."""

import copy
import pickle
import warnings

import pytest
import torch

from gradscale.optim.dgs import DGSSGD, DGSAdam, DGSAdamW
from tests.optim.kinds import DGS_NAMES, EVERY
from tests.optim.training import batches, make_model, same_weights, through_a_file, train

RUNNING = {"importance_decay": 0.8, "reset_every": 4, "reset_spike": 1.05}


def _set(place, name, value):
    def damage(state_dict):
        state_dict[place[0]][place[1]][name] = value

    return damage


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_of_the_state_of_dgs(dtype):
    model = make_model(dtype=dtype)
    optimizer = DGSSGD(model.parameters(), momentum=0.9, **RUNNING)
    train(model, optimizer, batches(1))
    state = optimizer.state[model[0].weight]
    assert {name: (value.dtype, value.numel()) for name, value in state.items()} == {
        "step": (torch.float32, 1),
        "momentum_buffer": (torch.float32 if dtype == torch.float16 else dtype, 480),
        "importance": (torch.float32, 480),
        "importance_history": (torch.float32, 4),
    }


@pytest.mark.parametrize("name", DGS_NAMES)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_of_dgs_are_whole_and_independent(clone, name):
    model = make_model()
    optimizer = EVERY[name](model.parameters(), lr=1e-2)
    train(model, optimizer, batches(3))
    twin_model, twin = clone((model, optimizer))
    before = copy.deepcopy(optimizer.state_dict())
    train(twin_model, twin, batches(8, start=3))
    after = optimizer.state_dict()
    for index, state in before["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in state.items())
    train(model, optimizer, batches(8, start=3))
    assert same_weights(model, twin_model)


@pytest.mark.parametrize(("ours", "theirs"), [(DGSAdamW, torch.optim.AdamW), (DGSAdam, torch.optim.Adam)])
def test_state_of_plain_adam_loads_into_dgs(ours, theirs):
    model = make_model()
    plain = theirs(model.parameters(), lr=3e-3, foreach=False)
    train(model, plain, batches(4))
    twin = copy.deepcopy(model)
    optimizer = ours(twin.parameters(), lr=1.0, form="equation", gamma=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert optimizer.param_groups[0]["lr"] == 3e-3 and optimizer.param_groups[0]["form"] == "equation"
    train(model, plain, batches(6, start=4))
    train(twin, optimizer, batches(6, start=4))
    torch.testing.assert_close(list(twin.parameters()), list(model.parameters()), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("lost", ["importance", "importance_history"])
def test_a_running_importance_without_half_of_its_state_starts_anew(lost):
    model = make_model()
    optimizer = DGSSGD(model.parameters(), **RUNNING)
    train(model, optimizer, batches(3))
    saved = through_a_file(optimizer.state_dict())
    for state in saved["state"].values():
        del state[lost]
    with pytest.warns(UserWarning, match="no running importance for 6 layers.*it starts anew"):
        optimizer.load_state_dict(saved)
    for state in optimizer.state.values():
        assert not state["importance"].any() and not state["importance_history"].any()
    train(model, optimizer, batches(4, start=3))
    # The weight of one gradient, 1 - 0.8.
    assert all(state["importance_history"][0] == 0.2 for state in optimizer.state.values())


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}])
def test_state_of_plain_sgd_loads_into_dgs(options):
    model = make_model()
    plain = torch.optim.SGD(model.parameters(), lr=3e-3, foreach=False, **options)
    train(model, plain, batches(4))
    twin = copy.deepcopy(model)
    optimizer = DGSSGD(twin.parameters(), lr=1.0, form="equation", gamma=0.0)
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    train(model, plain, batches(6, start=4))
    train(twin, optimizer, batches(6, start=4))
    torch.testing.assert_close(list(twin.parameters()), list(model.parameters()), atol=1e-7, rtol=1e-5)


def test_options_of_dgs_that_the_checkpoint_overrules_are_said():
    model = make_model()
    saved = DGSSGD(model.parameters(), sigma=0.5, **RUNNING).state_dict()
    optimizer = DGSSGD(model.parameters(), gamma=0.25)
    with pytest.warns(UserWarning, match="goes on with its own ") as caught:
        optimizer.load_state_dict(saved)
    found = str(caught[0].message)
    assert "gamma=None (not 0.25)" in found and "reset_every=4 (not None)" in found and "sigma=0.5 (not 1.0)" in found
    train(model, optimizer, batches(1))
    assert "importance" in optimizer.state[model[0].weight]


def test_state_of_a_diverged_run_of_dgs_loads_as_it_is():
    param = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = DGSSGD([param], momentum=0.9, **RUNNING)
    for bad in (float("inf"), float("nan")):
        param.grad = torch.ones(3, 3)
        param.grad[0, 0] = bad
        optimizer.step()
    saved = through_a_file(optimizer.state_dict())
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert optimizer.state[param]["importance"].isnan().sum() == 1
    for key, value in saved["state"][0].items():
        assert torch.equal(optimizer.state[param][key].nan_to_num(), value.nan_to_num())


@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 4)])
def test_what_is_kept_of_a_layer_never_looks_like_a_number_per_element(shape):
    param = torch.nn.Parameter(torch.ones(shape))
    optimizer = DGSSGD([param], **RUNNING)
    param.grad = torch.ones(shape)
    optimizer.step()
    history = optimizer.state[param]["importance_history"]
    assert history.shape != param.shape and history.numel() == 4


DAMAGES_OF_DGS = {
    "buffer missing": (lambda s: s["state"][1].pop("momentum_buffer"), "has no momentum_buffer"),
    "importance below 0": (
        _set(("state", 1), "importance", -torch.ones(24, 12)),
        r"importance with values outside \[0",
    ),
    "importance of another shape": (_set(("state", 1), "importance", torch.ones(12, 24)), "importance with shape"),
    "importance is complex": (
        _set(("state", 1), "importance", torch.ones(24, 12, dtype=torch.complex64)),
        "dense real numbers",
    ),
    "history below 0": (_set(("state", 1), "importance_history", -torch.ones(4)), "importance_history with values"),
    "history too short": (_set(("state", 1), "importance_history", torch.ones(2)), "importance_history with shape"),
    "history is a list": (_set(("state", 1), "importance_history", [1.0] * 4), "importance_history with"),
    "wrong option": (_set(("param_groups", 0), "sigma", 0.0), "sigma=0.0 is not allowed"),
    "options at odds": (_set(("param_groups", 0), "importance_decay", 0.0), "reset_every=4 needs a running importance"),
    "adam": (
        lambda s: s["state"].update({i: {"step": 1, "exp_avg": torch.zeros(1)} for i in s["state"]}),
        "has no momentum_buffer",
    ),
}


@pytest.mark.parametrize("name", DAMAGES_OF_DGS)
def test_damaged_state_of_dgs_is_refused_before_anything_changes(name):
    damage, message = DAMAGES_OF_DGS[name]
    model = make_model()
    optimizer = DGSSGD(model.parameters(), momentum=0.9, **RUNNING)
    train(model, optimizer, batches(3))
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["param_groups"][0]["lr"] = 0.5
    damage(damaged)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(damaged)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        assert all(torch.equal(value, after["state"][key][item]) for item, value in state.items())
    train(model, optimizer, batches(4, start=3))
