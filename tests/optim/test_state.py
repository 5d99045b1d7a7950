"""State: what a checkpoint holds; it survives loading bit for bit, and damage is refused before any change."""

import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import torch

from gradscale.optim.dgs import DGSLARS, DGSSGD, DGSAdam, DGSAdamW
from gradscale.optim.sgg_adam import SGGAdam, SGGAdamW
from gradscale.optim.sgg_lamb import SGGLamb
from gradscale.optim.sgg_lion import SGGLion
from gradscale.optim.sgg_sgd import SGGSGD
from tests.optim.kinds import EVERY, NAMES
from tests.optim.training import batches, make_model, same_weights, through_a_file, train

# Resumed in the middle of the resets' period, and right after a spike could have been seen.
RUNNING = {"importance_decay": 0.8, "reset_every": 4, "reset_spike": 1.05}
VARIANTS = [
    *(
        (SGGAdamW, {"recluster_interval": 3, "scale_decay": 0.5, **options})
        for options in (
            {},
            {"labels": "live"},
            {"amsgrad": True},
            {"grouping": "layer", "global_mda": "clusters"},
            {"n_clusters": 1},
            {"n_clusters": 5},
        )
    ),
    (SGGSGD, {"recluster_interval": 3}),
    (SGGSGD, {"recluster_interval": 3, "momentum": 0.9, "dampening": 0.5}),
    (SGGSGD, {"recluster_interval": 3, "momentum": 0.9, "nesterov": True, "labels": "live", "kahan_sum": True}),
    (SGGLion, {"recluster_interval": 3, "moments_dtype": "bfloat16"}),
    (SGGLamb, {"recluster_interval": 3, "adapt_vectors": True, "moments_dtype": "float32"}),
    (DGSSGD, {}),
    (DGSSGD, {**RUNNING, "momentum": 0.9, "dampening": 0.5}),
    (DGSLARS, {**RUNNING, "form": "normalized", "trust_coefficient": 0.1}),
    (DGSAdamW, {"form": "equation", "amsgrad": True}),
    (DGSAdamW, {**RUNNING, "form": "normalized", "kahan_sum": True}),
    (DGSAdam, {**RUNNING, "form": "importance", "importance_eps": 0.1, "reset": "hard"}),
]


def _id(item):
    return getattr(item, "__name__", None) or str(item)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("cls", "options"), VARIANTS, ids=_id)
def test_resumed_run_is_the_uninterrupted_run_bit_for_bit(cls, options, dtype):
    options = {"lr": 1e-2, **options}
    whole = make_model(dtype=dtype)
    train(whole, cls(whole.parameters(), **options), batches(11))

    first = make_model(dtype=dtype)
    optimizer = cls(first.parameters(), **options)
    train(first, optimizer, batches(5))
    saved_model, saved = through_a_file(first.state_dict()), through_a_file(optimizer.state_dict())

    second = make_model(seed=9, dtype=dtype)
    second.load_state_dict(saved_model)
    resumed = cls(second.parameters(), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(saved)
    for key, state in resumed.state_dict()["state"].items():
        for name, value in saved["state"][key].items():
            assert state[name].dtype == value.dtype and torch.equal(state[name], value), name
    train(second, resumed, batches(11, start=5))
    assert same_weights(whole, second) and not same_weights(whole, first)


def test_resume_in_a_new_process(tmp_path):
    code = """
import sys, torch
from tests.optim.kinds import EVERY
from tests.optim.training import batches, make_model, train
torch.set_num_threads(1)
folder, start, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for name, make in EVERY.items():
    model = make_model()
    optimizer = make(model.parameters(), lr=1e-2)
    if start:
        saved = torch.load(f"{folder}/{name}{start}.pt", weights_only=True)
        model.load_state_dict(saved["model"]); optimizer.load_state_dict(saved["optimizer"])
    train(model, optimizer, batches(stop, start=start))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/{name}{stop}.pt")
"""
    for start, stop in [(0, 3), (3, 8)]:
        subprocess.run([sys.executable, "-c", code, str(tmp_path), str(start), str(stop)], check=True)
    for name, make in EVERY.items():
        whole = make_model()
        optimizer = make(whole.parameters(), lr=1e-2)
        train(whole, optimizer, batches(8))
        saved = torch.load(tmp_path / f"{name}8.pt", weights_only=True)
        assert all(torch.equal(value, saved["model"][key]) for key, value in whole.state_dict().items()), name
        for index, state in optimizer.state_dict()["state"].items():
            assert all(torch.equal(value, saved["optimizer"]["state"][index][key]) for key, value in state.items())


def test_dtypes_of_the_state():
    model = make_model(dtype=torch.bfloat16)
    optimizer = SGGAdamW(model.parameters(), recluster_interval=1)
    train(model, optimizer, batches(1))
    dtypes = {name: value.dtype for name, value in optimizer.state[model[0].weight].items()}
    assert dtypes == {
        "step": torch.float32,
        "exp_avg": torch.bfloat16,
        "exp_avg_sq": torch.bfloat16,
        "labels": torch.uint8,
        "scales": torch.float32,
        "boundaries": torch.float32,
    }


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_are_whole_and_independent(clone):
    model = make_model()
    optimizer = SGGAdamW(model.parameters(), recluster_interval=2, module=model)
    train(model, optimizer, batches(4))
    twin_model, twin = clone((model, optimizer))
    assert twin.grouping_report == optimizer.grouping_report
    assert twin.grouping_report.layers[0].name == "0.weight"
    before = copy.deepcopy(optimizer.state_dict())
    train(twin_model, twin, batches(8, start=4))
    assert torch.equal(before["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    train(model, optimizer, batches(8, start=4))
    assert same_weights(model, twin_model)
    assert twin.grouping_report == optimizer.grouping_report


def test_public_attributes_survive_deepcopy():
    optimizer = SGGAdamW(make_model().parameters())
    public = [name for name in vars(optimizer) if not name.startswith("_")]
    assert public == [name for name in vars(copy.deepcopy(optimizer)) if not name.startswith("_")]


@pytest.mark.parametrize(("ours", "theirs"), [(SGGAdamW, torch.optim.AdamW), (SGGAdam, torch.optim.Adam)])
def test_state_of_plain_adam_loads_with_a_message(ours, theirs):
    model = make_model()
    plain = theirs(model.parameters(), lr=3e-3, foreach=False)
    train(model, plain, batches(4))
    twin = copy.deepcopy(model)
    optimizer = ours(twin.parameters(), lr=1.0, recluster_interval=6, nesterov=False)
    with pytest.warns(UserWarning, match="no groups for 3 layers"):
        optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))  # as torch, loading does not copy
    assert optimizer.param_groups[0]["lr"] == 3e-3
    assert train(model, plain, batches(5, start=4)) == train(twin, optimizer, batches(5, start=4))
    torch.testing.assert_close(list(twin.parameters()), list(model.parameters()), atol=1e-7, rtol=1e-5)
    train(twin, optimizer, batches(6, start=5))
    assert optimizer.grouping_report.step == 6


def test_older_state_without_newer_options_gets_their_defaults():
    model = make_model()
    optimizer = SGGAdamW(model.parameters(), recluster_interval=2, scale_decay=0.5)
    train(model, optimizer, batches(3))
    state_dict = optimizer.state_dict()
    for group in state_dict["param_groups"]:
        for name in ("maximize", "scale_decay", "momentum_sign", "scaled", "total_steps"):
            del group[name]
    for state in state_dict["state"].values():
        state["step"] = float(state["step"])  # torch once kept a number here
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["scale_decay"] == 0.5 and optimizer.param_groups[0]["scaled"] is True
    train(model, optimizer, batches(4, start=3))
    assert optimizer.grouping_report.step == 4


def test_options_that_the_checkpoint_overrules_are_said():
    model = make_model()
    saved = SGGAdamW(model.parameters(), scale_decay=0.5).state_dict()
    optimizer = SGGAdamW(model.parameters(), lr=0.1, n_clusters=4)
    with pytest.warns(UserWarning, match=r"own n_clusters=3 \(not 4\), scale_decay=0.5 \(not 0.9\)"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["n_clusters"] == 3


@pytest.mark.parametrize("name", NAMES)
def test_loading_and_copying_add_nothing_to_the_groups(name):
    model = make_model()
    optimizer = EVERY[name](model.parameters())
    train(model, optimizer, batches(3))
    before = copy.deepcopy(optimizer.state_dict()["param_groups"])
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state_dict()["param_groups"] == before
    assert copy.deepcopy(optimizer).state_dict()["param_groups"] == before


def test_copies_after_a_group_was_removed():
    params = [torch.nn.Parameter(torch.randn(3, 3)), torch.nn.Parameter(torch.randn(4, 2))]
    optimizer = SGGAdamW([{"params": [param]} for param in params], recluster_interval=1)
    del optimizer.param_groups[0]
    twin = copy.deepcopy(optimizer)
    twin.param_groups[0]["params"][0].grad = torch.randn(4, 2)
    twin.step()
    assert twin.grouping_report.layers[0].name == "parameter 1"


@pytest.mark.parametrize("name", NAMES)
def test_empty_state_loads_silently(name):
    model = make_model()
    optimizer = EVERY[name](model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, batches(2))
        optimizer.load_state_dict(optimizer.state_dict())


def _set(path, value):
    def damage(state_dict):
        target = state_dict
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return damage


def _drop(*path):
    def damage(state_dict):
        target = state_dict
        for key in path[:-1]:
            target = target[key]
        del target[path[-1]]

    return damage


DAMAGES = {
    "no state": (_drop("state"), "no optimizer state"),
    "no groups": (_drop("param_groups"), "no optimizer state"),
    "moment missing": (_drop("state", 0, "exp_avg"), "has no exp_avg"),
    "step missing": (_drop("state", 0, "step"), "has no step"),
    "step is text": (_set(("state", 0, "step"), "five"), "step='five'"),
    "wrong shape": (_set(("state", 1, "exp_avg_sq"), torch.zeros(2, 2)), r"exp_avg_sq with shape \[2, 2\]"),
    "step is nan": (_set(("state", 0, "step"), float("nan")), "step=nan"),
    "step is negative": (_set(("state", 0, "step"), torch.tensor(-1.0)), "step="),
    "step is broken": (_set(("state", 0, "step"), 2.5), "step=2.5"),
    "state is no mapping": (_set(("state",), None), "no optimizer state"),
    "groups are none": (_set(("param_groups",), None), "no optimizer state"),
    "state of a parameter is none": (_set(("state", 0), None), "parameter 0 is None"),
    "nan scales": (_set(("state", 1, "scales"), torch.full((3,), float("nan"))), "scales with values"),
    "negative scales": (_set(("state", 1, "scales"), -torch.ones(3)), r"scales with values outside \[0, "),
    "label beyond K": (_set(("state", 1, "labels"), torch.full((24, 12), 7)), r"labels with values outside \[0, 2\]"),
    "broken labels": (_set(("state", 1, "labels"), torch.full((24, 12), 1.5)), "labels with values that are not whole"),
    "unordered": (
        _set(("state", 1, "boundaries"), torch.tensor([1.0, -1.0])),
        "boundaries with values that are not in",
    ),
    "negative squares": (_set(("state", 1, "exp_avg_sq"), -torch.ones(24, 12)), "exp_avg_sq with values outside"),
    "complex": (_set(("state", 1, "exp_avg"), torch.ones(24, 12, dtype=torch.complex64)), "dense real numbers"),
    "sparse": (_set(("state", 1, "exp_avg"), torch.ones(24, 12).to_sparse()), "dense real numbers"),
    "labels of another shape": (_set(("state", 1, "labels"), torch.zeros(7)), "labels with shape"),
    "scales of another K": (_set(("state", 1, "scales"), torch.ones(9)), r"scales with shape \[9\]"),
    "no tensor": (_set(("state", 1, "exp_avg"), [1, 2]), "exp_avg with"),
    "other K than its scales": (_set(("param_groups", 0, "n_clusters"), 2), "scales with shape"),
    "bad option": (_set(("param_groups", 0, "betas"), (0.9, 1.5)), "betas="),
    "other group size": (_set(("param_groups", 0, "params"), [0, 1]), "parameter group"),
    "other number of groups": (lambda s: s["param_groups"].append({"params": []}), "number of parameter groups"),
    "sgd": (
        lambda s: s["state"].update({i: {"momentum_buffer": torch.zeros(1)} for i in s["state"]}),
        "has no exp_avg",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_state_is_refused_before_anything_changes(name):
    damage, message = DAMAGES[name]
    model = make_model()
    optimizer = SGGAdamW(model.parameters(), recluster_interval=2)
    train(model, optimizer, batches(3))
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["param_groups"][0]["lr"] = 0.5
    damage(damaged)
    before = copy.deepcopy(optimizer.state_dict())
    assert set(before["state"][1]) >= {"labels", "scales"}  # parameter 1 is a matrix
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(damaged)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        assert all(torch.equal(value, after["state"][key][item]) for item, value in state.items())
    train(model, optimizer, batches(4, start=3))


def test_user_hooks_see_plain_tensors_and_may_replace_the_state():
    model = make_model()
    optimizer = SGGAdamW(model.parameters(), recluster_interval=2)
    train(model, optimizer, batches(3))
    seen = []

    def pre_hook(_, state_dict):
        seen.append(type(state_dict["state"][0]["exp_avg"]))
        return {**state_dict, "param_groups": [{**state_dict["param_groups"][0], "lr": 0.125}]}

    optimizer.register_load_state_dict_pre_hook(pre_hook)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(type(o.state[model[0].weight]["labels"])))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [torch.Tensor, torch.Tensor] and optimizer.param_groups[0]["lr"] == 0.125
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1
