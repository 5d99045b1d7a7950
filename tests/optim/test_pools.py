"""Pooled layers must be grouped as one matrix is that holds them all, and nothing else may be pooled."""

import dataclasses

import pytest
import torch

from gradscale import SGG, OptionError, SGGAdamW
from gradscale.optim.pools import pools_of
from tests.optim.test_measure import layer
from tests.optim.training import through_a_file
from tests.reference.sgg_reference import ReferenceSGGAdamW

BLOCK = "base_model.model.model.layers.{}.{}.lora_{}.{}.weight"
OPTIONS = {"lr": 1e-2, "recluster_interval": 2, "scale_decay": 0.5, "weight_decay": 0.0}


def adapter(block=0, kinds="AB", name="default", modules=("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")):
    """Parameters of one block's adapter, by name."""
    torch.manual_seed(block)
    shapes = {"A": (4, 30), "B": (40, 4)}
    return {
        BLOCK.format(block, module, kind, name): torch.nn.Parameter(torch.randn(shapes[kind]))
        for module in modules
        for kind in kinds
    }


def run(params, optimizer, steps=5):
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        for index, param in enumerate(params):
            param.grad = torch.randn(param.shape, generator=generator).pow(3) * 10.0**-index
        optimizer.step()


def pools_of_names(*names):
    layers = [layer(name, torch.ones(4, 4), pool="lora") for name in names]
    return [tuple(one.name for one in pool.layers) for pool in pools_of(layers)]


@pytest.mark.parametrize(
    "names",
    [
        ("h.0.attn.q.lora_A.default.weight", "h.0.attn.k.lora_A.default.weight"),
        # AdaLoRA keeps its matrices in ParameterDicts, an adapter of an embedding likewise.
        ("h.0.attn.q.lora_E.default", "h.0.attn.k.lora_E.default"),
        ("embed_tokens.lora_embedding_B.default", "embed_positions.lora_embedding_B.default"),
        # DoRA's magnitudes of convolutions have four dimensions.
        ("down.conv1.lora_magnitude_vector.x.weight", "down.conv2.lora_magnitude_vector.x.weight"),
        # What FSDP1, torch.compile and activation checkpointing put in between, and PEFT around single parameters.
        ("h.0.attn.q.lora_A.default.weight", "_orig_mod.h.0._fsdp_wrapped_module.attn.k.lora_A.default.weight"),
        ("h.0.attn.q._checkpoint_wrapped_module.lora_A.default.weight", "h.0.attn.k.lora_A.default.weight"),
        ("h.0.mlp.experts.lora_A.default.weight", "h.0.mlp.experts.base_layer.lora_A.default.weight"),
        ("q.lora_A.default.weight", "k.lora_A.default.weight"),
    ],
)
def test_matrices_of_one_kind_in_one_parent_module_are_a_pool(names):
    assert pools_of_names(*names) == [names]


@pytest.mark.parametrize(
    "names",
    [
        ("h.0.attn.q.lora_A.default.weight", "h.0.attn.q.lora_B.default.weight"),
        ("h.0.attn.q.lora_A.default.weight", "h.1.attn.q.lora_A.default.weight"),
        ("h.0.attn.q.lora_A.default.weight", "h.0.mlp.up.lora_A.default.weight"),
        ("h.0.attn.q.lora_A.one.weight", "h.0.attn.k.lora_A.two.weight"),
        ("h.0.attn.q.lora_embedding_A.default", "h.0.attn.q.lora_A.default"),
        ("lm_head.modules_to_save.default.weight", "score.modules_to_save.default.weight"),
        ("h.0.attn.q.weight", "h.0.attn.k.weight"),
    ],
)
def test_others_are_not(names):
    assert pools_of_names(*names) == [(name,) for name in names]


def test_layers_with_other_options_or_other_ranks_are_grouped_apart():
    names = ["a.q.lora_A.x", "a.k.lora_A.x", "a.v.lora_A.x", "a.o.lora_A.x"]
    options = [{}, {"weight_decay": 0.1}, {"scale_decay": 0.5}, {}]
    layers = [layer(n, torch.ones(4, 4), pool="lora", **own) for n, own in zip(names, options, strict=True)]
    layers[3] = dataclasses.replace(layers[3], process_groups=(object(),))
    assert [[one.name for one in pool.layers] for pool in pools_of(layers)] == [names[:2], names[2:3], names[3:]]
    assert all(len(pool.layers) == 1 for pool in pools_of([layer(n, torch.ones(4, 4)) for n in names]))


@pytest.mark.parametrize("options", [{}, {"labels": "live"}, {"global_mda": "parameters", "momentum_sign": "absolute"}])
def test_a_pool_is_grouped_as_one_matrix_that_holds_them_all(options):
    params = adapter(modules=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
    together = {kind: [param for name, param in params.items() if f"lora_{kind}" in name] for kind in "AB"}
    whole = {
        kind: torch.nn.Parameter(torch.cat([p.detach().flatten(0) for p in group])[:, None])
        for kind, group in together.items()
    }
    start = {kind: param.detach().double().numpy() for kind, param in whole.items()}
    reference = ReferenceSGGAdamW(start, **{**OPTIONS, **options})
    optimizer = SGGAdamW(list(params.items()), pool="lora", **OPTIONS, **options)
    one = SGGAdamW(list(whole.items()), **OPTIONS, **options)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        for index, param in enumerate(params.values()):
            param.grad = torch.randn(param.shape, generator=generator) * 0.7 ** (index // 2)
        for kind, param in whole.items():
            param.grad = torch.cat([p.grad.flatten() for p in together[kind]])[:, None]
        optimizer.step()
        one.step()
        reference.step({kind: param.grad.double().numpy() for kind, param in whole.items()})
    for pooled, alone in zip(optimizer.grouping_report.layers, one.grouping_report.layers, strict=True):
        assert dataclasses.replace(pooled, name=alone.name, pooled=()) == alone
    for kind, param in whole.items():
        joined = torch.cat([p.detach().flatten() for p in together[kind]])[:, None]
        assert torch.equal(joined, param)
        for p in together[kind]:
            assert torch.equal(optimizer.state[p]["scales"], one.state[param]["scales"])
            torch.testing.assert_close(
                optimizer.state[p]["scales"].double(), torch.tensor(reference.scales[kind]), rtol=0.03, atol=0
            )


def test_the_report_names_a_pool_and_its_layers():
    params = adapter()
    optimizer = SGGAdamW(list(params.items()), pool="lora", **OPTIONS)
    run(params.values(), optimizer)
    layers = optimizer.grouping_report.layers
    attention = [name for name in params if "self_attn" in name and "lora_A" in name]
    assert [one.name for one in layers] == [
        "model.layers.0.self_attn.*.lora_A.default",
        "model.layers.0.self_attn.*.lora_B.default",
        *[name for name in params if "mlp" in name],
    ]
    assert layers[0].pooled == tuple(attention) and layers[2].pooled == ()
    assert layers[0].numel == sum(layers[0].counts) == sum(params[name].numel() for name in attention)


def test_the_adapter_pools_as_the_class_does():
    params, twins = adapter(), adapter()
    optimizer = SGGAdamW(list(params.items()), pool="lora", **OPTIONS)
    wrapped = SGG(torch.optim.AdamW(list(twins.items()), lr=1e-2, weight_decay=0.0), pool="lora", recluster_interval=2)
    run(params.values(), optimizer, steps=2)
    run(twins.values(), wrapped, steps=2)
    ours, theirs = optimizer.grouping_report.layers, wrapped.grouping_report.layers
    assert [(one.pooled, one.counts) for one in ours] == [(one.pooled, one.counts) for one in theirs]
    with pytest.raises(OptionError, match="finds LoRA's matrices by their names"):
        SGG(torch.optim.AdamW(adapter().values()), pool="lora")
    with pytest.raises(OptionError, match="finds LoRA's matrices by their names"):
        wrapped.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, 3))]})


def test_pools_without_names_are_refused_before_anything_changes():
    params = adapter()
    with pytest.raises(OptionError, match=r"pool='lora' finds LoRA's matrices by their names.*module="):
        SGGAdamW(params.values(), pool="lora")
    with pytest.raises(OptionError, match=r"pool='lora' has nothing to pool: none of the 1 parameters.*'head.weight'"):
        SGGAdamW([("head.weight", torch.nn.Parameter(torch.ones(3, 3)))], pool="lora")
    with pytest.raises(OptionError, match=r"pool='LoRA' is not allowed: expected one of 'none', 'lora'"):
        SGGAdamW(list(params.items()), pool="LoRA")
    model = torch.nn.ModuleDict({"q": torch.nn.ModuleDict({"lora_A": torch.nn.ModuleDict()})})
    model["q"]["lora_A"]["x"] = torch.nn.Linear(3, 3)
    optimizer = SGGAdamW(model.parameters(), pool="lora", module=model)
    with pytest.raises(OptionError, match="parameter 1 of a group has none"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3, 3))]})
    assert len(optimizer.param_groups) == 1
    # Vectors are not scaled, a group may keep out of it, and the model knows the names of what was added to it.
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, 3))], "pool": "none"})
    model["q"]["lora_A"]["y"] = torch.nn.Linear(3, 3)
    optimizer.add_param_group({"params": model["q"]["lora_A"]["y"].parameters()})


def test_a_layer_that_joins_later_shares_the_scales_from_the_next_grouping_on():
    params = adapter(kinds="A", modules=("self_attn.q_proj", "self_attn.v_proj"))
    first, second = params.items()
    optimizer = SGGAdamW([first], pool="lora", **OPTIONS)
    run([first[1]], optimizer, steps=4)
    before = optimizer.state[first[1]]["scales"].clone()
    optimizer.add_param_group({"params": [second]})
    run(params.values(), optimizer, steps=2)
    scales, joined = (optimizer.state[param]["scales"] for param in params.values())
    assert torch.equal(scales, joined) and not torch.equal(scales, before)
    (pool,) = optimizer.grouping_report.layers
    assert pool.pooled == tuple(params) and pool.scales == tuple(scales.tolist())


def test_one_layer_that_is_not_finite_holds_its_whole_pool_up():
    params = adapter()
    optimizer = SGGAdamW(list(params.items()), pool="lora", **OPTIONS)
    run(params.values(), optimizer, steps=1)
    for param in params.values():
        param.grad = torch.ones_like(param)
    params[BLOCK.format(0, "self_attn.q_proj", "B", "default")].grad[0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="holds inf or NaN"):
        optimizer.step()
    report = optimizer.grouping_report
    assert report.waiting == tuple(name for name in params if "self_attn" in name and "lora_B" in name)
    assert len(report.layers) == 3


def test_pools_survive_a_checkpoint():
    params, twins = adapter(), adapter()
    optimizer = SGGAdamW(list(params.items()), pool="lora", **OPTIONS)
    run(params.values(), optimizer, steps=3)
    resumed = SGGAdamW(list(twins.items()), pool="lora", **OPTIONS)
    with torch.no_grad():
        for twin, param in zip(twins.values(), params.values(), strict=True):
            twin.copy_(param)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for one, own in ((optimizer, params), (resumed, twins)):
        run(own.values(), one, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(params.values(), twins.values(), strict=True))
    assert resumed.grouping_report == optimizer.grouping_report


def grouped(numel, **options):
    param = torch.nn.Parameter(torch.randn(numel, 1))
    other = torch.nn.Parameter(torch.randn(60, 60))
    optimizer = SGGAdamW([param, other], **{**OPTIONS, "global_mda": "clusters", **options})
    run([param, other], optimizer, steps=2)
    return optimizer.state[param], optimizer.grouping_report.layers[0]


@pytest.mark.parametrize("labels", ["frozen", "live"])
def test_a_layer_below_the_smallest_size_gets_one_scale(labels):
    state, report = grouped(29, min_layer_size=30, labels=labels)
    assert report.counts == (29, 0, 0) and state["boundaries"].isinf().all()
    assert state["scales"][0] != 1 and (state["scales"][1:] == 1).all()
    assert labels == "live" or not state["labels"].any()
    state, _ = grouped(29, min_layer_size=30, labels=labels, global_mda="layer")
    assert (state["scales"] == 1).all()  # compared with itself
    _, report = grouped(30, min_layer_size=30, labels=labels)
    assert all(count > 0 for count in report.counts)
    with pytest.raises(OptionError, match=r"min_layer_size=-1 is not allowed: expected an integer of at least 0"):
        grouped(30, min_layer_size=-1)


def test_of_a_pool_the_elements_of_all_layers_count():
    params = adapter()  # A's of 120 elements, B's of 160; two of each in the attention block, one in the MLP
    optimizer = SGGAdamW(list(params.items()), pool="lora", min_layer_size=240, **OPTIONS)
    run(params.values(), optimizer, steps=2)
    clusters = [sum(count > 0 for count in one.counts) for one in optimizer.grouping_report.layers]
    assert clusters == [3, 3, 1, 1]
