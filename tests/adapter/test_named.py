"""SGG around third-party bases by name, against these alone. Guards against an update, a momentum or a resumed run that
is another one, and against state that grows."""

import pytest
import torch

from gradscale import OptionError
from tests.adapter.named_bases import DECAY, LR, OPTIONS, Model, alone, gradient, named, run
from tests.optim.training import through_a_file

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
AT_ONCE = {"recluster_interval": 1, "scale_decay": 0.0}
LAYERS = ["embed.weight", "up.weight", "down.weight", "head.weight"]


def of(optimizer, model, name):
    """Saved state of a parameter."""
    place = [param for group in optimizer.param_groups for param in group["params"]]
    wanted = model.get_parameter(name)
    return optimizer.state_dict()["state"][next(i for i, param in enumerate(place) if param is wanted)]


@pytest.mark.parametrize("name", OPTIONS)
def test_scales_of_1_are_the_base_bit_for_bit(name):
    model, other = Model(), Model()
    found = run([named(name, model, **AT_ONCE, scale_bounds=(1.0, 1.0))], model, range(5))
    for step, (mine, right) in enumerate(zip(found, run(alone(name, other), other, range(5)), strict=True)):
        for key, value in right.items():
            assert torch.equal(mine[key], value), (step, key)


@pytest.mark.parametrize("name", OPTIONS)
def test_scales_of_2_move_twice_what_is_no_weight_decay(name):
    model, other = Model(), Model()
    optimizer, base = named(name, model, **AT_ONCE, scale_bounds=(2.0, 2.0)), alone(name, other)
    run([optimizer], model, range(1))
    start = run(base, other, range(1))[0]
    mine, right = run([optimizer], model, range(1, 2))[0], run(base, other, range(1, 2))[0]
    scaled = {layer.name for layer in optimizer.grouping_report.layers}
    assert scaled == set(LAYERS) - ({"embed.weight"} if name == "sgg_apollo_adamw" else set())
    for key, before in start.items():
        kept = before.double() * (1 - LR * DECAY)
        once, found = right[key].double() - kept, mine[key].double() - kept
        assert once.abs().mean() > 1e-4
        # Weights below 2 in float32: what is read from them is known to 1.2e-7.
        assert torch.allclose(found, once * (2 if key in scaled else 1), rtol=1e-5, atol=5e-7), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name, dtype):
    model = Model(dtype)
    optimizer = named(name, model, recluster_interval=2)
    run([optimizer], model, range(4))
    saved, weights = through_a_file(optimizer.state_dict()), through_a_file(model.state_dict())
    expected = run([optimizer], model, range(4, 9))
    other = Model(dtype)
    other.load_state_dict(weights)
    resumed = named(name, other, recluster_interval=2)
    resumed.load_state_dict(saved)
    for mine, right in zip(run([resumed], other, range(4, 9)), expected, strict=True):
        for key, value in right.items():
            assert torch.equal(mine[key], value), key


def by_hand(state):
    """The momentum of quantized state, element by element, in float64."""
    if "__bnb_optimizer_quant_state__" in state:
        parts = state["__bnb_optimizer_quant_state__"]
        codes, qmap, scale, block = parts["state1"].flatten(), parts["qmap1"], parts["absmax1"], 256
    else:
        parts = state["exp_avg"]
        codes, qmap, scale, block = parts.codes.flatten(), parts.qmap, parts.scale, parts.block_size
        if len(qmap) == 16:
            codes = torch.stack([codes // 16, codes % 16], dim=1).flatten()
    return torch.tensor([float(qmap[int(code)]) * float(scale[i // block]) for i, code in enumerate(codes)]).double()


@pytest.mark.parametrize("name", ["sgg_adamw_8bit", "sgg_adamw_torch_8bit", "sgg_adamw_torch_4bit"])
def test_the_quantized_momentum_is_what_is_grouped(name):
    model = Model()
    optimizer = named(name, model, recluster_interval=3)
    run([optimizer], model, range(3))
    state = of(optimizer, model, "up.weight")
    momentum = by_hand(state)
    exact = sum(0.1 * 0.9 ** (2 - step) * gradient(step, model, "up.weight").double().flatten() for step in range(3))
    off = float((momentum - exact).norm() / exact.norm())
    assert 1e-3 < off < 0.3  # it is the momentum, and not the exact one
    labels = torch.bucketize(momentum, state["sgg_boundaries"].double())
    assert torch.equal(labels, state["sgg_labels"].flatten().long()) and len(labels.unique()) == 3
    assert "sgg_momentum" not in state


def test_quantized_momenta_are_made_dense_one_layer_at_a_time(monkeypatch):
    import weakref

    from gradscale.adapter import momentum, sgg

    model = Model()
    optimizer = named("sgg_adamw_8bit", model, recluster_interval=2)
    alive, most = [], []

    def counted(state, key):
        made = momentum.dense(state, key)
        if momentum.is_quantized(state, key):
            alive.append(weakref.ref(made))
            most.append(sum(other() is not None for other in alive))
        return made

    monkeypatch.setattr(sgg, "dense", counted)
    run([optimizer], model, range(2))
    assert len(optimizer.grouping_report.layers) == 4
    assert len(most) >= 4 and max(most) == 1  # two of the layers are, and each is made more than once


def test_without_a_momentum_the_gradient_of_the_step_is_grouped():
    for name, options in (("sgg_apollo_adamw", {}), ("sgg_adafactor", {"kept_momentum": "gradient"})):
        model = Model()
        optimizer = named(name, model, recluster_interval=3, **options)
        run([optimizer], model, range(4))
        state = of(optimizer, model, "up.weight")
        labels = torch.bucketize(gradient(2, model, "up.weight"), state["sgg_boundaries"])
        assert torch.equal(labels, state["sgg_labels"].long()) and "sgg_momentum" not in state, name


def test_live_labels_without_a_momentum_are_those_of_todays_gradient():
    scaled, other = Model(), Model()
    optimizer = named("sgg_adafactor", scaled, recluster_interval=2, labels="live", kept_momentum="gradient")
    base = alone("sgg_adafactor", other)
    run([optimizer], scaled, range(2))
    before = run(base, other, range(2))[-1]["up.weight"].double()
    state = of(optimizer, scaled, "up.weight")
    mine = run([optimizer], scaled, range(2, 3))[0]["up.weight"].double()
    right = run(base, other, range(2, 3))[0]["up.weight"].double()
    kept = before * (1 - LR * DECAY)
    scales = state["sgg_scales"].double()[torch.bucketize(gradient(2, other, "up.weight"), state["sgg_boundaries"])]
    assert torch.allclose(mine - kept, scales * (right - kept), rtol=1e-5, atol=5e-7)
    assert "sgg_labels" not in state and scales.unique().numel() == 3


def test_adafactor_with_beta1_and_came_group_their_running_mean_of_updates():
    for name, options in (("sgg_adafactor", {"beta1": 0.9}), ("sgg_came", {})):
        model = Model()
        optimizer = named(name, model, recluster_interval=3, **options)
        run([optimizer], model, range(3))
        state = of(optimizer, model, "up.weight")
        labels = torch.bucketize(state["exp_avg"].float(), state["sgg_boundaries"])
        assert torch.equal(labels, state["sgg_labels"].long()) and "sgg_momentum" not in state, name


# Bytes of state for each element of a layer of 1024 x 1024: of the base, SGG's labels (1), and what SGG keeps besides.
BYTES = {
    "sgg_adafactor": 4 + 1,  # a running mean of the gradient
    "sgg_came": 4 + 1,
    "sgg_apollo_adamw": 2 * 4 * 8 / 1024 + 4 * 8 / 1024 + 1,  # two moments of rank 8, and the projection
    "sgg_muon": 4 + 1,
    "sgg_adamw_8bit": 2 * (1 + 4 / 256) + 1,
    "sgg_paged_adamw_8bit": 2 * (1 + 4 / 256) + 1,
    "sgg_adamw_torch_8bit": 2 * (1 + 4 / 256) + 1,
    "sgg_adamw_torch_4bit": 2 * (0.5 + 4 / 256) + 1,
}


def tensors(value):
    """All plain tensors in a state."""
    if isinstance(value, dict):
        return [tensor for inner in value.values() for tensor in tensors(inner)]
    if hasattr(value, "tensor_attrs"):
        return [getattr(value, name) for name in value.tensor_attrs]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.parametrize("name", OPTIONS)
def test_state_takes_the_bytes_that_the_documentation_says(name):
    model = torch.nn.Sequential(torch.nn.Linear(1024, 1024, bias=False), torch.nn.Linear(1024, 2, bias=False))
    optimizer = named(name, model, recluster_interval=2)
    run([optimizer], model, range(2))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors(of(optimizer, model, "0.weight"))) / 2**20
    assert size == pytest.approx(BYTES[name], abs=0.02)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_not_given_is_as_the_tables_say(name):
    from gradscale.registry import get_entry

    entry = get_entry(name)
    model = Model()
    base = entry.load()(model.parameters(), LR, module=model).base_optimizer
    for option, described in entry.options.items():
        if option == "adamw_lr":
            assert described.default is None and {group["lr"] for group in base.param_groups} == {LR}
            continue
        if option == "kernel":
            assert described.default == "compiled" and base.eager is False
            continue
        found = [group[key] for group in base.param_groups for key in (option, f"sgg_{option}") if key in group]
        found += [getattr(owner, option) for owner in (base, getattr(base, "args", None)) if hasattr(owner, option)]
        assert found and all(value == described.default for value in found), option


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    model = Model()
    groups = named("sgg_muon", model, adamw_lr=1e-3).param_groups
    names = {id(param): name for name, param in model.named_parameters()}
    found = {group["use_muon"]: {names[id(param)] for param in group["params"]} for group in groups}
    assert found[True] == {"up.weight", "down.weight"} and "head.weight" in found[False]
    assert {group["use_muon"]: group["lr"] for group in groups} == {True: LR, False: 1e-3}


def test_groups_keep_their_own_options_and_decay_split():
    model = Model()
    matrices = [param for param in model.parameters() if param.dim() > 1]
    vectors = [param for param in model.parameters() if param.dim() < 2]
    given = [
        {"params": matrices, "weight_decay": 0.3, "n_clusters": 2},
        {"params": vectors, "weight_decay": 0.0, "scaled": False, "betas": (0.8, 0.9)},
    ]
    for name in OPTIONS:
        from gradscale.registry import get_entry

        if name in ("sgg_came", "sgg_adafactor"):
            given[1].pop("betas", None)
        groups = get_entry(name).load()(given, LR, module=model, **OPTIONS[name]).param_groups
        assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
        for group in groups:
            first = group["weight_decay"] == 0.3
            assert group["sgg_n_clusters"] == (2 if first else 3)
            assert first or group["sgg_scaled"] is False
            if "betas" in given[1]:
                assert first or group["betas"] == (0.8, 0.9)
        given[1]["betas"] = (0.8, 0.9)
        assert [set(group) for group in given] == [
            {"params", "weight_decay", "n_clusters"},
            {"params", "weight_decay", "scaled", "betas"},
        ]


def test_target_modules_of_apollo_are_projected_and_scaled_and_nothing_else():
    model = Model()
    optimizer = named("sgg_apollo_adamw", model, target_modules=["up", "down"], recluster_interval=1)
    run([optimizer], model, range(2))
    assert {layer.name for layer in optimizer.grouping_report.layers} == {"up.weight", "down.weight"}
    ranked = [param for group in optimizer.param_groups if "rank" in group for param in group["params"]]
    assert {tuple(param.shape) for param in ranked} == {(96, 96), (70, 96)}


def test_embeddings_keep_their_moments_in_32_bits_and_nothing_else_does():
    """An exception for one tensor must not become one for all, which are stepped one at a time."""
    model = Model()
    optimizer = named("sgg_adamw_8bit", model)
    run([optimizer], model, range(1))
    found = {name: optimizer.state[model.get_parameter(name)]["state1"].dtype for name in LAYERS}
    assert found == {
        "embed.weight": torch.float32,
        "up.weight": torch.uint8,
        "down.weight": torch.uint8,
        "head.weight": torch.float32,  # 3360 elements
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgg_came", {"betas": (0.9, 0.999, 2.0)}, "betas="),
        ("sgg_came", {"clip_treshold": 1.0}, "did you mean 'clip_threshold'"),
        ("sgg_came", {"kept_momentum": "mean"}, "unknown option kept_momentum"),
        ("sgg_apollo_adamw", {"proj_type": "left"}, "scale_type='channel' with proj_type='left' is not allowed"),
        ("sgg_apollo_adamw", {"module": None}, "sgg_apollo_adamw needs module="),
        ("sgg_muon", {"module": None}, "sgg_muon needs module="),
        ("sgg_adafactor", {"kept_momentum": "sum"}, "kept_momentum='sum' is not allowed"),
        ("sgg_adafactor", {"n_clusters": 0}, "n_clusters=0 is not allowed"),
        ("sgg_adamw_8bit", {"module": 3}, "module=3 is not allowed"),
        ("sgg_adamw_torch_4bit", {"kernel": "fast"}, "kernel='fast' is not allowed"),
    ],
)
def test_wrong_options_are_refused_by_name(name, options, message):
    with pytest.raises(OptionError) as caught:
        named(name, Model(), **options)
    assert message in str(caught.value)


def test_a_learning_rate_of_0_that_came_would_assert_is_refused():
    from gradscale.adapter.named.came import SGGCAME

    with pytest.raises(OptionError, match="lr=0.0 is not allowed: CAME expects"):
        SGGCAME(Model().parameters(), 0.0)


def test_a_missing_library_is_named_with_its_pip_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "came_pytorch", None)
    with pytest.raises(ImportError, match=r"SGGCAME needs came_pytorch .*: pip install 'came-pytorch>=0.1.3'"):
        named("sgg_came", Model())


@pytest.mark.parametrize("name", ["sgg_adamw_torch_4bit"])
def test_the_compiled_step_is_the_eager_one_within_rounding(name):
    ends = []
    for kernel in ("compiled", "eager"):
        model = torch.nn.Sequential(torch.nn.Linear(96, 96, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.linspace(-1, 1, 96 * 96).view(96, 96).sin())
        optimizer = named(name, model, kernel=kernel)
        model[0].weight.grad = torch.linspace(-3, 3, 96 * 96).view(96, 96).cos()
        optimizer.step()
        ends.append(model[0].weight.detach())
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-6)


def test_a_layer_in_parts_is_refused_before_the_first_step_by_libraries_that_cannot_step_it():
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from gradscale.sharding.view import UnsupportedShardingError

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        for name in OPTIONS:
            model = torch.nn.Sequential(torch.nn.Linear(96, 96, bias=False), torch.nn.Linear(96, 3, bias=False))
            for layer in model:
                layer.weight = torch.nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
                layer.weight.grad = distribute_tensor(torch.ones(layer.weight.shape), mesh, [Shard(0)])
            optimizer = named(name, model, recluster_interval=1)
            before = [layer.weight.to_local().clone() for layer in model]
            if name == "sgg_muon" or "torch_" in name:
                optimizer.step()
                assert not torch.equal(before[0], model[0].weight.to_local())
                continue
            with pytest.raises(UnsupportedShardingError, match="cannot step a layer of which FSDP2 has left a part"):
                optimizer.step()
            assert all(torch.equal(was, layer.weight.to_local()) for was, layer in zip(before, model, strict=True))
    finally:
        dist.destroy_process_group()
