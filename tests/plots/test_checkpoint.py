"""What is read from a checkpoint's optimizer state is what the optimizer itself has.

Guards against pictures of the wrong tensor, of the wrong layer or with the wrong names, and against tracebacks where a
checkpoint has no clusters.
"""

import json

import numpy as np
import pytest
import torch

import gradscale
from gradscale.plots.checkpoint import Checkpoint, NoClusters, OtherOptimizer
from gradscale.training.errors import ConfigError
from tests.adapter.named_bases import Model
from tests.adapter.named_bases import named as named_base
from tests.plots.checkpoints import save, trained

OPTIONS = {"lr": 1e-2, "recluster_interval": 3}
NAMES = ["first.weight", "layers.0.weight", "layers.1.weight"]


def adapter(base, **options):
    def make(model):
        return gradscale.SGG(base(model.parameters()), recluster_interval=3, module=model, **options)

    return make


def named(kind, **options):
    return lambda model: kind(model.named_parameters(), **OPTIONS, **options)


# What makes the optimizer, where it keeps the momentum, and the prefix of its own state.
OPTIMIZERS = {
    "adamw": (named(gradscale.SGGAdamW), "exp_avg", ""),
    "adam": (named(gradscale.SGGAdam, amsgrad=True), "exp_avg", ""),
    "sgd": (named(gradscale.SGGSGD, momentum=0.9), "momentum_buffer", ""),
    "lion": (named(gradscale.SGGLion), "exp_avg", ""),
    "lamb": (named(gradscale.SGGLamb, n_clusters=2), "exp_avg", ""),
    "bfloat16": (named(gradscale.SGGAdamW, moments_dtype="bfloat16"), "exp_avg", ""),
    "live": (named(gradscale.SGGAdamW, labels="live"), "exp_avg", ""),
    "absolute": (named(gradscale.SGGAdamW, momentum_sign="absolute"), "exp_avg", ""),
    "gmm": (named(gradscale.SGGAdamW, grouping="gmm"), "exp_avg", ""),
    "live gmm": (named(gradscale.SGGAdamW, grouping="gmm", labels="live"), "exp_avg", ""),
    "nadam": (adapter(lambda params: torch.optim.NAdam(params, lr=1e-2)), "exp_avg", "sgg_"),
    "rmsprop": (adapter(lambda params: torch.optim.RMSprop(params, lr=1e-2)), "sgg_momentum", "sgg_"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_have_the_momentum_labels_boundaries_and_scales_of_the_optimizer(name, tmp_path):
    make, key, prefix = OPTIMIZERS[name]
    optimizer, model = trained(make)  # and has grouped at the last step
    checkpoint = Checkpoint(save(optimizer, tmp_path / "checkpoint-6"))
    assert checkpoint.step == 6 and len(checkpoint.names) == 3
    if not prefix:
        assert checkpoint.names == NAMES
    saved = optimizer.state_dict()["state"]
    for place, layer_name in zip((0, 2, 4), checkpoint.names, strict=True):
        layer, state = checkpoint.read(layer_name), saved[place]
        momentum = state[key].float().flatten()
        assert torch.equal(layer.momentum, momentum.abs() if name == "absolute" else momentum)
        assert layer.absolute == (name == "absolute")
        assert list(layer.scales) == state[f"{prefix}scales"].tolist()
        assert len(layer.scales) == (2 if name == "lamb" else 3) and layer.rate == 1e-2
        edges = np.array(layer.boundaries)
        assert len(edges) >= len(layer.scales) - 1 and (np.diff(edges) > 0).all()
        intervals = np.searchsorted(edges, layer.momentum.double().numpy(), side="left")
        owners = state[f"{prefix}owners"].numpy() if f"{prefix}owners" in state else np.arange(len(layer.scales))
        assert (layer.labels.numpy() == owners[intervals]).all()
    report = {layer.name: layer for layer in optimizer.grouping_report.layers}
    for layer_name, parameter_name in zip(checkpoint.names, NAMES, strict=True):
        layer, reported = checkpoint.read(layer_name), report[parameter_name]
        # The report counts whole bins of the histogram, and a boundary may lie inside of one.
        counts = np.bincount(layer.labels.numpy(), minlength=len(reported.counts))
        np.testing.assert_allclose(counts, reported.counts, atol=0.01 * reported.numel)


def test_the_divisor_is_adams_and_unknown_of_elements_without_gradients(tmp_path):
    optimizer, model = trained(lambda model: gradscale.SGGAdamW(model.parameters(), **OPTIONS, betas=(0.9, 0.95)))
    optimizer.state[model.first.weight]["exp_avg_sq"][0, :5] = 0
    layer = Checkpoint(save(optimizer, tmp_path / "checkpoint-6")).read("parameter 0")
    second = optimizer.state[model.first.weight]["exp_avg_sq"].double().flatten().numpy()
    expected = np.sqrt(second / (1 - 0.95**6)) + 1e-8
    assert np.isnan(layer.divisor[:5]).all()
    np.testing.assert_allclose(layer.divisor[5:], expected[5:], rtol=1e-6)
    lion, _ = trained(OPTIMIZERS["lion"][0])
    assert Checkpoint(save(lion, tmp_path / "lion")).read(NAMES[0]).divisor is None


def test_frozen_labels_are_those_of_the_grouping_and_not_of_today(tmp_path):
    optimizer, model = trained(OPTIMIZERS["adamw"][0], steps=5)
    layer = Checkpoint(save(optimizer, tmp_path / "checkpoint-5", step=5)).read(NAMES[0])
    assert torch.equal(layer.labels, optimizer.state[model.first.weight]["labels"].flatten())
    today = np.searchsorted(np.array(layer.boundaries), layer.momentum.numpy(), side="left")
    assert (layer.labels.numpy() != today).any()


def test_after_the_end_of_the_schedule_rates_are_those_of_its_peak(tmp_path):
    def make(model):
        optimizer = gradscale.SGGAdamW(model.parameters(), **OPTIONS)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return optimizer

    optimizer, _ = trained(make)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    checkpoint = Checkpoint(save(optimizer, tmp_path / "checkpoint-6"))
    assert checkpoint.schedule_has_ended and checkpoint.read("parameter 0").rate == 1e-2


def test_names_come_from_the_runs_log_if_it_has_the_same_scales(tmp_path):
    optimizer, _ = trained(adapter(lambda params: torch.optim.NAdam(params, lr=1e-2)))
    report = optimizer.grouping_report
    assert report is not None
    layers = {layer.name: {"scales": list(layer.scales)} for layer in report.layers}
    folder = save(optimizer, tmp_path / "checkpoint-6")
    log = tmp_path / "scales.jsonl"
    log.write_text(json.dumps({"step": 6, "layers": layers}) + "\n" + json.dumps({"step": 9, "layers": {}}) + "\n")
    assert Checkpoint(folder).names == NAMES
    layers[NAMES[1]]["scales"][0] += 1e-3  # of another run
    log.write_text(json.dumps({"step": 6, "layers": layers}) + "\n")
    assert Checkpoint(folder).names == ["parameter 0", "parameter 2", "parameter 4"]


def test_names_come_from_the_model_in_the_order_of_the_trainers_groups(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), optim="sgg_adamw", optim_args="recluster_interval=1", use_cpu=True,
        weight_decay=0.1, report_to="none",
    )  # fmt: skip
    optimizer = Trainer(model=model, args=arguments).create_optimizer()
    model(input_ids=torch.arange(40).view(2, 20), labels=torch.arange(40).view(2, 20)).loss.backward()
    optimizer.step()
    folder = save(optimizer, tmp_path / "run" / "checkpoint-1", step=1)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    checkpoint = Checkpoint(folder)
    assert len(checkpoint.names) == 14 and "lm_head.weight" not in checkpoint.names
    for name in checkpoint.names:
        momentum = optimizer.state[model.get_parameter(name)]["exp_avg"].flatten()
        assert torch.equal(checkpoint.read(name).momentum, momentum.abs())
    config.num_hidden_layers = 1  # another model's: no wrong names
    config.save_pretrained(folder)
    assert Checkpoint(folder).names[0] == "parameter 1"  # the first has no groups


def test_checkpoints_without_clusters_are_refused_with_the_reason(tmp_path):
    def refused(make, kind, message, steps=6, read=False):
        folder = save(trained(make, steps)[0], tmp_path / "checkpoint-6")
        with pytest.raises(kind, match=message) as caught:
            checkpoint = Checkpoint(folder)
            if read:
                checkpoint.read(checkpoint.names[0])
        assert "\n" not in str(caught.value) and "checkpoint-6" in str(caught.value)

    refused(lambda model: torch.optim.AdamW(model.parameters()), OtherOptimizer, "another optimizer .*exp_avg_sq, step")
    refused(lambda model: gradscale.DGSAdamW(model.parameters()), OtherOptimizer, "those of the sgg_ optimizers")
    refused(named(gradscale.SGGAdamW, grouping="static"), NoClusters, "grouping=static")
    refused(named(gradscale.SGGAdamW), NoClusters, "before the first grouping", steps=2)
    refused(named(gradscale.SGGSGD), ConfigError, "no momentum of first.weight .*momentum=0.9", read=True)


def test_folders_without_a_readable_optimizer_are_refused_with_the_reason(tmp_path):
    folder = save(trained(named(gradscale.SGGAdamW))[0], tmp_path / "checkpoint-6")
    path = folder / "optimizer.pt"
    whole = path.read_bytes()
    for damaged, message in ((whole[: len(whole) // 2], "its end is missing"), (b"", "its end is missing")):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=message) as caught:
            Checkpoint(folder)
        assert not isinstance(caught.value, NoClusters) and "\n" not in str(caught.value)
    torch.save([1, 2], path)
    with pytest.raises(ConfigError, match="is no optimizer state"):
        Checkpoint(folder)
    path.unlink()
    with pytest.raises(NoClusters, match="save_only_model=false"):
        Checkpoint(folder)
    (folder / "global_step6").mkdir()
    with pytest.raises(NoClusters, match=r"FSDP or DeepSpeed \(global_step6\)"):
        Checkpoint(folder)


def test_states_of_other_libraries_are_read_as_numbers(tmp_path):
    def stepped(name):
        torch.manual_seed(0)
        model = Model()
        optimizer = named_base(name, model, recluster_interval=2)
        sums = torch.zeros_like(model.up.weight)
        for _ in range(4):
            for param in model.parameters():
                param.grad = torch.randn_like(param) * torch.rand_like(param) ** 3
            sums.mul_(0.9).add_(model.up.weight.grad, alpha=0.1)
            optimizer.step()
        return Checkpoint(save(optimizer, tmp_path / name, step=4)), sums.flatten()

    for name in ("sgg_adamw_8bit", "sgg_adamw_torch_8bit"):  # which keep codes of 8 bits
        checkpoint, momentum = stepped(name)
        layer = checkpoint.read("up.weight")
        assert layer.divisor is None
        assert (layer.momentum - momentum).abs().max() < 0.03 * momentum.abs().max()
    muon, _ = stepped("sgg_muon")
    assert muon.read("up.weight").divisor is None  # not every second moment is Adam's
    apollo, _ = stepped("sgg_apollo_adamw")
    with pytest.raises(ConfigError, match="kept_momentum=mean"):
        apollo.read("up.weight")
