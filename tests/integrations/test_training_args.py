"""`TrainingArguments` with our names: checked when built, and kept through every way of saving them."""

import copy
import io
import json
import multiprocessing
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from gradscale import OptionError, SGGAdam, SGGAdamW
from gradscale.integrations.registration import failures
from gradscale.integrations.training_args_patch import constructor_options
from gradscale.registry import REGISTRY


def build(tmp_path, **kwargs):
    kwargs = {"optim": "sgg_adamw", "optim_args": "n_clusters=2,betas=[0.8,0.9]", **kwargs}
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], **kwargs)


def test_this_transformers_is_extended():
    assert dict(failures()) == {}


@pytest.mark.parametrize("name", list(REGISTRY))
def test_choices_of_the_command_line(name, tmp_path, capsys):
    parser = HfArgumentParser(TrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--optim", name, "--use_cpu"])
    assert args.optim is OptimizerNames(name)
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--help"])
    assert name in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--optim", name + "x"])
    assert name in capsys.readouterr().err


def test_a_misspelt_name_lists_ours(tmp_path):
    with pytest.raises(ValueError, match="sgg_adamx.*sgg_adamw"):
        build(tmp_path, optim="sgg_adamx", optim_args=None)


@pytest.mark.parametrize(
    "optim_args",
    ["n_clusters=2,betas=[0.8,0.9]", {"n_clusters": 2, "betas": [0.8, 0.9]}, '{"n_clusters": 2, "betas": [0.8, 0.9]}'],
)
def test_json_and_yaml_files(tmp_path, optim_args):
    parser = HfArgumentParser(TrainingArguments)
    values = {"output_dir": str(tmp_path), "use_cpu": True, "optim": "sgg_adamw", "optim_args": optim_args}
    values["optim_target_modules"] = ["q_proj", "v_proj"]
    file = tmp_path / "args.json"
    file.write_text(json.dumps(values))  # JSON is YAML
    for (args,) in (parser.parse_json_file(file), parser.parse_yaml_file(file), parser.parse_dict(values)):
        _, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(2, 2))
        assert (kwargs["n_clusters"], kwargs["betas"]) == (2, (0.8, 0.9))
        assert kwargs["target_modules"] == ["q_proj", "v_proj"]


def test_target_modules_on_the_command_line(tmp_path):
    parser = HfArgumentParser(TrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--optim", "sgg_adamw", "--optim_target_modules", "q_proj,v_proj"]
    )
    _, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(2, 2))
    assert kwargs["target_modules"] == "q_proj,v_proj"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"optim_args": "n_cluster=3"}, ["n_cluster=3", "'n_clusters'"]),
        ({"optim_args": "n_clusters=3,n_clusters=3"}, ["twice"]),
        ({"optim_args": "n_clusters"}, ["malformed"]),
        ({"optim_args": "n_clusters=99"}, ["n_clusters=99", "64"]),
        ({"optim_args": "lr=1"}, ["--learning_rate"]),
        ({"optim_target_modules": ""}, ["--optim_target_modules", "q_proj,v_proj"]),
        ({"optim_target_modules": "(q_proj"}, ["--optim_target_modules", "regular expression"]),
        ({"optim_target_modules": [3]}, ["--optim_target_modules", "[3]"]),
        ({"adam_beta1": 1.0, "optim_args": None}, ["--adam_beta1/adam_beta2"]),
        ({"adam_epsilon": -1e-8}, ["--adam_epsilon", "-1e-08"]),
        ({"adam_epsilon": "1e-8"}, ["--adam_epsilon", "1.0e-4"]),
        ({"learning_rate": float("nan")}, ["--learning_rate", "nan"]),
        ({"learning_rate": -1.0}, ["--learning_rate", "-1.0"]),
        ({"learning_rate": "1e-4"}, ["--learning_rate", "'1e-4'", "1.0e-4"]),
        ({"weight_decay": -0.1}, ["--weight_decay", "-0.1"]),
    ],
)
@pytest.mark.parametrize("optim", ["sgg_adamw", "sgg_adam"])
def test_errors_when_built(tmp_path, optim, kwargs, words):
    with pytest.raises(OptionError) as error:
        build(tmp_path, optim=optim, **kwargs)
    for word in words:
        assert word in str(error.value)


def test_overridden_betas_are_not_checked_twice(tmp_path):
    build(tmp_path, adam_beta1=1.0)  # optim_args give betas


def test_other_optimizers_are_left_alone(tmp_path):
    args = build(tmp_path, optim="adamw_torch", optim_args="anything=1", adam_epsilon=1e-6)
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    assert cls is torch.optim.AdamW and kwargs["eps"] == 1e-6


def keeps(args):
    return args.optim is OptimizerNames.SGG_ADAMW and args.optim_args == "n_clusters=2,betas=[0.8,0.9]"


def test_copies(tmp_path):
    args = build(tmp_path)
    assert keeps(pickle.loads(pickle.dumps(args))) and keeps(copy.copy(args)) and keeps(copy.deepcopy(args))
    buffer = io.BytesIO()
    torch.save(args, buffer)
    buffer.seek(0)
    assert keeps(torch.load(buffer, weights_only=False))
    loaded = json.loads(args.to_json_string())
    assert loaded["optim"] == args.to_dict()["optim"] == args.to_sanitized_dict()["optim"] == "sgg_adamw"
    assert keeps(TrainingArguments(**{key: loaded[key] for key in ("output_dir", "use_cpu", "optim", "optim_args")}))


def test_spawned_process(tmp_path):
    # The child imports torch for the first time while it unpickles.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(repr_of, (build(tmp_path),)) == "<OptimizerNames.SGG_ADAMW: 'sgg_adamw'>"


def repr_of(args):
    return repr(args.optim)


@pytest.mark.parametrize(("name", "cls"), [("sgg_adamw", SGGAdamW), ("sgg_adam", SGGAdam)])
def test_class_and_keywords(tmp_path, name, cls):
    args = build(
        tmp_path, optim=name, optim_args="n_clusters=2", learning_rate=3e-4, adam_beta2=0.95, adam_epsilon=1e-6
    )
    chosen, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    assert chosen is cls
    assert kwargs == {
        "lr": 3e-4,
        "betas": (0.9, 0.95),
        "eps": 1e-6,
        "n_clusters": 2,
        "recluster_interval": 0.05,
        "scale_decay": 0.5,
        "momentum_sign": "absolute",
        "labels": "live",
        "scope": "auto",
        "embedding_lr_factor": "auto",
        "total_steps": "deferred",
    }
    # As other trainers do: groups of their own, no model.
    optimizer = chosen([{"params": [torch.nn.Parameter(torch.ones(2, 2))], "weight_decay": 0.1}], **kwargs)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize(("given", "scope"), [(None, "all"), ("n_clusters=2", "all"), ("scope=hidden", "hidden")])
def test_layers_that_are_chosen_are_scaled_whichever_they_are(tmp_path, given, scope):
    chosen = build(tmp_path, optim_args=given, optim_target_modules="lm_head,q_proj")
    assert constructor_options(chosen, REGISTRY["sgg_adamw"])["scope"] == scope
    every = constructor_options(build(tmp_path, optim_args=given), REGISTRY["sgg_adamw"])["scope"]
    assert every == ("hidden" if given == "scope=hidden" else "auto")


def test_run_length_interval_and_model(tmp_path):
    model = torch.nn.Linear(2, 2)
    args = build(tmp_path, optim_args="recluster_interval=7", max_steps=11, optim_target_modules="all-linear")
    _, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    assert (kwargs["total_steps"], kwargs["recluster_interval"]) == (11, 7)
    assert kwargs["module"] is model and kwargs["target_modules"] == "all-linear"
    assert not {"model", "params", "optimizer_dict"} & set(kwargs)
    with pytest.raises(ValueError, match="needs the model"):
        Trainer.get_optimizer_cls_and_kwargs(args)


def test_a_new_optimizer_needs_one_entry_and_nothing_else(tmp_path):
    """In a process of its own: names are added when transformers is imported."""
    code = """
import dataclasses, sys
from gradscale import registry
entry = dataclasses.replace(registry.REGISTRY["sgg_adamw"], name="sgg_other", target="gradscale.optim.sgg_adam:SGGAdam")
registry.REGISTRY = {**registry.REGISTRY, entry.name: entry}
from transformers import HfArgumentParser, Trainer, TrainingArguments
parser = HfArgumentParser(TrainingArguments)
assert "sgg_other" in parser.format_help()
arguments = ["--output_dir", sys.argv[1], "--optim", "sgg_other", "--optim_args", "n_clusters=2", "--use_cpu"]
(args,) = parser.parse_args_into_dataclasses(arguments)
cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
assert cls.__name__ == "SGGAdam" and kwargs["n_clusters"] == 2, (cls, kwargs)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
