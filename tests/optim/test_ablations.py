"""The paper's ablations as options of optimizers: groupings, statistics, and where labels are kept.

Guards against factors that are not the scales of an element's group, options that quietly do nothing, and state that
does not come back.
"""

import copy
import importlib.util

import numpy as np
import pytest
import torch

from gradscale import SGG, OptionError, SGGAdamW
from gradscale.integrations.optim_args import parse_optim_args
from gradscale.optim import placement
from gradscale.optim.placement import refuse_sharded
from gradscale.optim.rule import Slot
from gradscale.optim.state_io import new_tensor
from gradscale.option_checks import check_sgg
from gradscale.option_tables import SGG as OPTIONS
from gradscale.registry import get_entry
from gradscale.sharding.view import Segment, TensorView, UnsupportedShardingError
from gradscale.sweep.grid import read_axes
from tests.optim.small_models import FEW, make, run
from tests.optim.training import through_a_file
from tests.reference.sgg_reference import statistic_of

GROUPINGS = ["layer", "static", "minibatch_kmeans", "gmm", "dbscan"]
BY_SKLEARN = ["minibatch_kmeans", "gmm", "dbscan"]
ADAMW = {"lr": 1e-2, "weight_decay": 0.1}


def wrapped(params, **options):
    return SGG(torch.optim.AdamW(params, **ADAMW), **options)


@pytest.mark.parametrize("option", ["grouping", "statistic"])
def test_none_is_the_base_optimizer_without_any_state(option):
    params, optimizer = make(recluster_interval=1, **{option: "none"})
    twins, base = make(n_clusters=1)
    run(params, optimizer)
    run(twins, base)
    assert all(torch.equal(one, other) for one, other in zip(params, twins, strict=True))
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq"} and optimizer.grouping_report is None


@pytest.mark.parametrize("labels", ["frozen", "live"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_every_element_moves_by_the_scale_of_its_group(grouping, labels):
    """In the step of the grouping and in the one after it, against the base's update of the same moments."""
    over = {"global_mda": "clusters"} if grouping == "layer" else {}
    own = {"grouping": grouping, "labels": labels, "scale_decay": 0.0, "nesterov": False, **over}
    params, optimizer = make(dtype=torch.float64, shapes=FEW, **own)
    run(params, optimizer, range(2))
    for step in (2, 3):
        twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
        base = torch.optim.AdamW(twins, **ADAMW)
        moments = {
            place: {key: optimizer.state[param][key].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
            for place, param in enumerate(params)
        }
        base.load_state_dict({"state": moments, "param_groups": base.state_dict()["param_groups"]})
        before = [param.detach() * (1 - 1e-3) for param in twins]
        run(params, optimizer, [step])
        run(twins, base, [step])
        seen = set()
        for start, param, twin in zip(before, params, twins, strict=True):
            factor = ((param - start) / (twin - start)).detach()
            state = optimizer.state[param]
            if param.dim() < 2:
                expected = torch.ones_like(factor)
            elif grouping == "layer":
                expected = state["scales"].expand(param.shape)
            elif grouping == "static":
                expected = state["scales"][:, None].expand(param.shape)
            else:
                number = (state["exp_avg"][..., None] > state["boundaries"].double()).sum(dim=-1)
                number = state["owners"][number].long() if "owners" in state else number
                number = state["labels"].long() if labels == "frozen" else number
                expected = state["scales"][number]
            torch.testing.assert_close(factor, expected.double(), rtol=1e-6, atol=1e-9)
            seen |= set(state.get("scales", torch.ones(1)).tolist())
        assert len(seen) > 2


def test_labels_of_a_grouping_are_those_of_the_momentum_at_that_step():
    for grouping in ("gmm", "dbscan"):
        params, optimizer = make(grouping=grouping, shapes=FEW)
        run(params, optimizer, range(3))
        state = optimizer.state[params[0]]
        number = (state["exp_avg"][..., None] > state["boundaries"]).sum(dim=-1)
        assert torch.equal(state["labels"], state["owners"][number])
        counts = optimizer.grouping_report.layers[0].counts
        assert (state["labels"].flatten().bincount(minlength=3) - torch.tensor(counts)).abs().max() <= 4
        other = wrapped(make(shapes=FEW)[0], grouping=grouping, recluster_interval=3)
        run(other.param_groups[0]["params"], other, range(3))
        saved = other.state_dict()["state"][0]
        assert torch.equal(saved["sgg_labels"], state["labels"]) and torch.equal(saved["sgg_owners"], state["owners"])


@pytest.mark.parametrize("block", [None, 4, 1000])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_static_block_has_the_scale_of_its_own_rows(block, absolute):
    sign = "absolute" if absolute else "signed"
    own = {"grouping": "static", "static_block": block, "momentum_sign": sign, "scale_decay": 0.0}
    own["global_mda"] = "clusters"
    params, optimizer = make(shapes=[(10, 7), (6, 5, 3, 3)], recluster_interval=2, **own)
    run(params, optimizer, range(2))
    size, found = block or 1, []
    for param in params:
        momentum = optimizer.state[param]["exp_avg"].double().flatten(1).numpy()
        momentum = np.abs(momentum) if absolute else momentum
        blocks = [momentum[begin : begin + size] for begin in range(0, len(momentum), size)]
        found.append([statistic_of("mda", each, momentum) for each in blocks])
    typical = np.median(np.concatenate(found))
    assert optimizer.grouping_report.global_mda == pytest.approx(typical)
    for param, mda in zip(params, found, strict=True):
        assert set(optimizer.state[param]) == {"step", "exp_avg", "exp_avg_sq", "scales"}
        scales = optimizer.state[param]["scales"]
        np.testing.assert_allclose(scales[::size], np.clip(typical / np.array(mda), 0.1, 10), 1e-6)
        assert torch.equal(scales, scales[::size].repeat_interleave(size)[: len(param)])


def test_static_layers_without_finite_or_any_momentum_wait():
    params, optimizer = make(shapes=[(3, 4), (3, 4), (3, 4)], recluster_interval=1, grouping="static")
    for param, value in zip(params, (0.0, float("nan"), 1.0), strict=True):
        param.grad = torch.full((3, 4), value) * torch.arange(12.0).view(3, 4)
    with pytest.warns(RuntimeWarning, match="parameter 1 holds inf or NaN"):
        optimizer.step()
    assert [layer.name for layer in optimizer.grouping_report.layers] == ["parameter 2"]
    assert (optimizer.state[params[1]]["scales"] == 1).all() and (optimizer.state[params[2]]["scales"] != 1).any()


def test_groups_that_are_measured_otherwise_are_compared_with_their_own_kind():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(20, 30)) for _ in range(4)]
    ways = [{}, {"statistic": "variance"}, {"grouping": "gmm"}, {"grouping": "static", "statistic": "variance"}]
    groups = [{"params": [param], **way} for param, way in zip(params, ways, strict=True)]
    optimizer = SGGAdamW(groups, recluster_interval=1, scale_decay=0.0, global_mda="clusters")
    run(params, optimizer, range(1))
    layers = optimizer.grouping_report.layers
    typical = np.median([each for place in (0, 2) for each in layers[place].mda])
    for place in (0, 2):
        np.testing.assert_allclose(layers[place].scales, np.clip(typical / np.array(layers[place].mda), 0.1, 10), 1e-6)
    blocks = optimizer.state[params[3]]["exp_avg"].double().var(dim=1, correction=0)
    typical = torch.cat([blocks, torch.tensor(layers[1].mda)]).median().item()
    assert optimizer.state[params[3]]["scales"].tolist() == pytest.approx(
        (typical / blocks).clamp(0.1, 10).tolist(), rel=0.1
    )


@pytest.mark.parametrize("make_one", [SGGAdamW, wrapped], ids=["named", "adapter"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_resumed_run_is_the_uninterrupted_one(grouping, make_one):
    own = {"grouping": grouping, "recluster_interval": 2, "statistic": "l2", "global_mda": "clusters"}
    params = make(shapes=FEW)[0]
    optimizer = make_one(params, **own)
    run(params, optimizer, range(3))
    saved, weights = through_a_file(optimizer.state_dict()), copy.deepcopy(params)
    run(params, optimizer, range(3, 6))
    resumed = make_one(weights, **own)
    resumed.load_state_dict(saved)
    run(weights, resumed, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(params, weights, strict=True))
    damaged = copy.deepcopy(saved)
    damaged["state"][0]["sgg_scales" if make_one is wrapped else "scales"] = torch.ones(17)
    with pytest.raises(ValueError, match="Nothing was loaded"):
        resumed.load_state_dict(damaged)


@pytest.mark.parametrize("labels", ["frozen", "live"])
def test_compiled_and_eager_steps_of_clusters_in_several_intervals_agree(labels):
    params, optimizer = make(shapes=FEW, kernel="compiled", grouping="gmm", labels=labels)
    twins, twin = make(shapes=FEW, kernel="eager", grouping="gmm", labels=labels)
    run(params, optimizer)
    run(twins, twin)
    for one, other in zip(params, twins, strict=True):
        torch.testing.assert_close(one, other, atol=2e-8, rtol=5e-7)
        for key in {"labels", "owners", "boundaries", "scales"} & set(twin.state[other]):
            assert torch.equal(optimizer.state[one][key], twin.state[other][key])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grouping": "kmean"}, "grouping='kmean' is not allowed"),
        ({"statistic": "median"}, "statistic='median' is not allowed"),
        ({"static_block": 4}, "static_block=4 needs grouping='static'"),
        ({"static_block": 0, "grouping": "static"}, "static_block=0 is not allowed"),
        ({"statistic": "l2", "global_mda": "parameters"}, "global_mda='parameters' is not allowed with statistic='l2'"),
        (
            {"grouping": "static", "global_mda": "parameters"},
            "global_mda='parameters' is not allowed with grouping='static'",
        ),
        (
            {"grouping": "layer", "global_mda": "layer"},
            r"global_mda='layer' \(the default\) is not allowed with grouping='layer'.* use global_mda='clusters'",
        ),
        ({"labels_device": "gpu"}, "labels_device='gpu' is not allowed"),
        (
            {"labels_device": "cpu", "labels": "live"},
            "labels_device='cpu' is not allowed with labels='live'.*labels='frozen'",
        ),
        (
            {"labels_device": "hybrid", "grouping": "layer", "global_mda": "clusters"},
            "labels_device='hybrid' is not allowed with grouping='layer'",
        ),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused_by_constructors_and_in_training_arguments(options, message):
    from transformers import TrainingArguments

    for refused in (
        lambda: SGGAdamW([torch.nn.Parameter(torch.ones(2, 2))], **options),
        lambda: wrapped([torch.nn.Parameter(torch.ones(2, 2))], **options),
        lambda: TrainingArguments(output_dir="unused", use_cpu=True, optim="sgg_adamw", optim_args=dict(options)),
    ):
        with pytest.raises(OptionError, match=message):
            refused()


@pytest.mark.parametrize("grouping", BY_SKLEARN)
def test_without_scikit_learn_its_groupings_are_refused_with_what_to_install(grouping, monkeypatch):
    defaults = {name: option.default for name, option in OPTIONS.items()}
    check_sgg({**defaults, "grouping": grouping})
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    with pytest.raises(OptionError, match=f"grouping='{grouping}' needs scikit-learn.*pip install scikit-learn"):
        SGGAdamW([torch.nn.Parameter(torch.ones(2, 2))], grouping=grouping)
    check_sgg(defaults)


def test_ablations_are_read_from_the_command_line_and_can_be_swept_over():
    (axis,) = read_axes(["optim_args=grouping=gmm,grouping=dbscan,'grouping=static,static_block=64',statistic=mad"])
    assert [parse_optim_args(value, get_entry("sgg_adamw")) for value in axis.values] == [
        {"grouping": "gmm"},
        {"grouping": "dbscan"},
        {"grouping": "static", "static_block": 64},
        {"statistic": "mad"},
    ]
    assert parse_optim_args("static_block=none", get_entry("sgg_adamw")) == {"static_block": None}


def test_state_in_host_memory_is_made_there_and_kept_there():
    on_device = torch.nn.Parameter(torch.empty(4, 6, device="meta"))
    slots = SGGAdamW.scaler.slots(on_device.shape, None, group_of(labels_device="hybrid"))
    places = {key: new_tensor(slot, on_device).device.type for key, slot in slots.items()}
    assert places == {"labels": "cpu", "scales": "meta", "boundaries": "meta"}
    slots = SGGAdamW.scaler.slots(on_device.shape, None, group_of(labels_device="cpu"))
    assert {new_tensor(slot, on_device).device.type for slot in slots.values()} == {"cpu"}
    assert not any(slot.host for slot in SGGAdamW.scaler.slots(on_device.shape, None, group_of()).values())
    loaded = placement.brought_home(torch.ones(4, 6), slots["labels"], torch.device("meta"))
    assert loaded.device.type == "cpu" and loaded.dtype == torch.uint8
    assert placement.brought_home(torch.ones(3), Slot(torch.float32, torch.Size([3])), torch.device("meta")).is_meta


def group_of(**options):
    return {name: option.default for name, option in OPTIONS.items()} | {"scaled": True, "total_steps": None} | options


@pytest.mark.parametrize("kernel", ["eager", "compiled"])
def test_labels_are_brought_over_one_tensor_at_a_time_and_taken_back(kernel, monkeypatch):
    """There is no second device here: labels count as away from it, so that they are copied to and fro."""
    away = lambda tensor, device: tensor.dtype == torch.uint8  # noqa: E731
    alive, most, copies = set(), [], torch.Tensor.to

    def to(tensor, *args, **kwargs):
        found = copies(tensor, *args, **kwargs)
        if kwargs.get("copy") and tensor.dtype == torch.uint8:
            alive.add(id(found))
            torch.utils.weak.weakref.finalize(found, alive.discard, id(found))
            most.append(len(alive))
        return found

    params, optimizer = make(shapes=FEW, kernel=kernel, labels_device="cpu")
    twins, twin = make(shapes=FEW, kernel=kernel)
    with monkeypatch.context() as patched:
        patched.setattr(placement, "is_away", away)
        patched.setattr(torch.Tensor, "to", to)
        run(params, optimizer)
    run(twins, twin)
    # Seven steps of two layers; the two groupings accumulate and apply apart.
    assert len(most) >= 14 and max(most) == 1
    for one, other in zip(params, twins, strict=True):
        assert torch.equal(one, other)
        for key, value in twin.state[other].items():
            assert torch.equal(optimizer.state[one][key], value)


@pytest.mark.parametrize("place", ["cpu", "hybrid"])
def test_where_labels_are_kept_changes_no_number_and_survives_a_checkpoint(place):
    for make_one in (SGGAdamW, wrapped):
        params, twins = make(shapes=FEW)[0], make(shapes=FEW)[0]
        optimizer, twin = (
            make_one(params, recluster_interval=2, labels_device=place),
            make_one(twins, recluster_interval=2),
        )
        run(params, optimizer, range(3))
        fresh = make_one(params, recluster_interval=2, labels_device=place)
        fresh.load_state_dict(through_a_file(optimizer.state_dict()))
        run(params, fresh, range(3, 5))
        run(twins, twin, range(5))
        assert all(torch.equal(one, other) for one, other in zip(params, twins, strict=True))


def test_options_that_need_whole_layers_are_refused_for_shards():
    segment = Segment("layer", torch.Size([4, 4]), 0, 8, 0, ("group",))
    sharded, gpu, cpu = TensorView((segment,)), torch.device("cuda"), torch.device("cpu")
    for view in (sharded, TensorView((segment,), flat=True)):
        with pytest.raises(UnsupportedShardingError, match="grouping='static' needs whole layers.*layer"):
            refuse_sharded(view, cpu, group_of(grouping="static"))
        with pytest.raises(UnsupportedShardingError, match="labels_device='hybrid' needs whole layers"):
            refuse_sharded(view, gpu, group_of(labels_device="hybrid"))
        refuse_sharded(view, cpu, group_of(labels_device="hybrid"))
        refuse_sharded(view, gpu, group_of(grouping="gmm"))
    whole = TensorView((Segment("layer", torch.Size([4, 4]), 0, 16, 0),))
    refuse_sharded(whole, gpu, group_of(grouping="static"))
    refuse_sharded(whole, gpu, group_of(labels_device="cpu"))
