"""The four DGS optimizers by their names: real Trainer runs, resumed ones, what is refused and when, and the doctor."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from gradscale.cli.doctor import main as doctor
from gradscale.integrations.optim_args import parse_optim_args
from gradscale.optim.dgs import DGSLARS, DGSSGD, DGSAdam, DGSAdamW
from gradscale.options import OptionError
from gradscale.registry import get_entry

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
import tiny  # noqa: E402

RUNNING = "importance_decay=0.9,reset_every=3,reset_spike=1.2"
NAMED = {
    "dgs_sgd": (DGSSGD, f"{RUNNING},momentum=0.9,nesterov=true,sigma=0.1,eps=1e-2", 1e-2),
    "dgs_lars": (DGSLARS, f"{RUNNING},reset=hard,trust_coefficient=0.05,form=normalized", 1.0),
    "dgs_adamw": (DGSAdamW, f"{RUNNING},form=normalized,factor_bounds=[0.5,2]", 1e-2),
    "dgs_adam": (DGSAdam, "form=equation,sigma=1e-2,beta=0.1,gamma=1e-4", 1e-2),
}


def arguments(folder, name, **options):
    _, optim_args, learning_rate = NAMED[name]
    options = {"optim_args": optim_args, "learning_rate": learning_rate, "max_steps": 6, **options}
    return TrainingArguments(
        output_dir=str(folder),
        optim=name,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )


def make(folder, name, **options):
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(4, len(tiny.WORDS), (10,), generator=generator) for _ in range(32)]
    data = [{"input_ids": ids, "labels": ids} for ids in tokens]
    return Trainer(model=tiny.model(), args=arguments(folder, name, **options), train_dataset=data)


@pytest.mark.parametrize("name", NAMED)
def test_a_run_and_the_same_run_resumed(name, tmp_path, monkeypatch):
    if version("transformers").startswith("4.46."):
        # It reads its own random state, numpy objects, as torch has refused to since 2.6, whatever the optimizer.
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    whole = make(tmp_path / "whole", name, save_steps=4, weight_decay=0.01)
    whole.train()
    optimizer = whole.optimizer.optimizer
    assert type(optimizer) is NAMED[name][0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert {group["steps"] for group in optimizer.param_groups} == {6}  # not the 12 backward passes
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert not any(key.startswith("sgg/") for entry in whole.state.log_history for key in entry)

    resumed = make(tmp_path / "resumed", name, save_steps=4, weight_decay=0.01)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(
        optimizer.state_dict()["state"].values(),
        resumed.optimizer.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", NAMED)
def test_options_reach_the_optimizer(name, tmp_path):
    options = {"optim_args": "form=importance,gamma=0.5,beta=3", "adam_beta1": 0.5, "adam_epsilon": 1e-5}
    trainer = make(tmp_path, name, learning_rate=0.125, weight_decay=0.25, **options)
    trainer.create_optimizer()
    group = trainer.optimizer.param_groups[0]
    assert (group["form"], group["gamma"], group["beta"]) == ("importance", 0.5, 3.0)
    assert (group["lr"], group["weight_decay"]) == (0.125, 0.25)
    if name in ("dgs_adamw", "dgs_adam"):
        assert (group["betas"], group["eps"], group["importance_eps"]) == ((0.5, 0.999), 1e-5, None)
    else:  # Adam's fields are not theirs
        assert "betas" not in group and group["eps"] == 1e-8


def test_target_modules_are_what_is_scaled(tmp_path):
    trainer = make(tmp_path, "dgs_adamw", optim_target_modules=["q_proj"], max_steps=1)
    trainer.train()
    names = {param: name for name, param in trainer.model.named_parameters()}
    scaled = {
        names[param]
        for group in trainer.optimizer.optimizer.param_groups
        if group["scaled"]
        for param in group["params"]
    }
    assert scaled == {f"model.layers.{index}.self_attn.q_proj.weight" for index in (0, 1)}


REFUSED = [
    ("dgs_sgd", "forms=full", ["forms='full'", "did you mean 'form'", "dgs_sgd"]),
    ("dgs_sgd", "form=Full", ["form='Full'", "'equation', 'importance', 'full', 'normalized'"]),
    ("dgs_sgd", "sigma=0", ["sigma=0", "above 0"]),
    ("dgs_sgd", "beta=-1", ["beta=-1", "above 0"]),
    ("dgs_sgd", "gamma=-0.5", ["gamma=-0.5", "at least 0"]),
    ("dgs_sgd", "importance_decay=1", ["importance_decay=1", "[0, 1)"]),
    ("dgs_sgd", "reset=no", ["reset='no'", "'soft', 'hard'"]),
    ("dgs_sgd", "reset_decay=0", ["reset_decay=0", "(0, 1)"]),
    ("dgs_sgd", "reset_every=0", ["reset_every=0", "an integer of at least 1"]),
    ("dgs_sgd", "reset_every=0.5", ["reset_every=0.5", "an integer of at least 1"]),
    ("dgs_sgd", "reset_spike=1", ["reset_spike=1", "above 1"]),
    ("dgs_sgd", "factor_bounds=[2,1]", ["factor_bounds=[2, 1]", "ascending"]),
    ("dgs_sgd", "factor_bounds=0.1,10", ["'10' is malformed"]),
    ("dgs_sgd", "betas=[0.9,0.99]", ["betas", "dgs_sgd", "momentum"]),
    ("dgs_sgd", "importance_eps=1e-3", ["importance_eps", "dgs_sgd"]),
    ("dgs_sgd", "n_clusters=3", ["n_clusters", "dgs_sgd"]),
    ("dgs_lars", "nesterov=true", ["nesterov", "dgs_lars", "trust_coefficient"]),
    ("dgs_lars", "trust_coefficient=0", ["trust_coefficient=0", "above 0"]),
    ("dgs_adamw", "momentum=0.9", ["momentum", "dgs_adamw"]),
    ("dgs_adamw", "importance_eps=-1", ["importance_eps=-1", "at least 0"]),
    ("dgs_adam", "scaled=false", ["scaled", "dgs_adam"]),
]


@pytest.mark.parametrize(("name", "text", "words"), REFUSED)
def test_refused_when_the_arguments_are_made(name, text, words, tmp_path):
    with pytest.raises(OptionError) as error:
        arguments(tmp_path, name, optim_args=text)
    for word in ["--optim_args", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dgs_sgd", "reset_every=5", "--optim_args: reset_every=5 needs a running importance"),
        ("dgs_sgd", "nesterov=true", "--optim_args: nesterov=True needs momentum above 0"),
        ("dgs_lars", "eps=0", "--optim_args: eps=0 is not allowed with form='full'"),
        ("dgs_adamw", "factor_bounds=[2,3]", "expected 1 between the two"),
        ("dgs_adam", "importance_eps=0", "importance_eps=0 is not allowed with form='full'"),
    ],
)
def test_contradictions_are_refused_when_the_arguments_are_made(name, text, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        arguments(tmp_path, name, optim_args=text)


def test_a_contradiction_with_a_field_of_the_trainer_is_refused_too(tmp_path):
    with pytest.raises(OptionError, match="eps=0 is not allowed with form='full'.*importance_eps above 0 allows it"):
        arguments(tmp_path, "dgs_adamw", optim_args="beta=2", adam_epsilon=0.0)
    arguments(tmp_path, "dgs_adamw", optim_args="form=normalized", adam_epsilon=0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("form=normalized,factor_bounds=[0.5,2]", {"form": "normalized", "factor_bounds": (0.5, 2.0)}),
        ("gamma=1e-3,reset_every=10", {"gamma": 1e-3, "reset_every": 10}),
        ('{"gamma": null, "sigma": 2}', {"gamma": None, "sigma": 2.0}),
        ({"reset_spike": 3, "importance_decay": "0.9"}, {"reset_spike": 3.0, "importance_decay": 0.9}),
        ("gamma=None,reset_every=none", {"gamma": None, "reset_every": None}),
        ("nesterov=true,momentum=.9", {"nesterov": True, "momentum": 0.9}),
    ],
)
def test_typed(text, expected):
    parsed = parse_optim_args(text, get_entry("dgs_sgd"))
    assert parsed == expected and [type(v) for v in parsed.values()] == [type(v) for v in expected.values()]


@pytest.mark.parametrize("name", NAMED)
def test_the_doctor_knows_the_names_and_refuses_what_the_trainer_refuses(name, capsys):
    assert doctor(["--optim", name]) == 0
    assert "Verdict: would run" in capsys.readouterr().out
    assert doctor(["--optim", name, "--optim_args", "sigma=0"]) == 2
    assert "sigma=0 is not allowed" in capsys.readouterr().err


@pytest.fixture
def model(tmp_path):
    tiny.model().config.save_pretrained(tmp_path)
    return str(tmp_path / "config.json")


@pytest.mark.parametrize("name", NAMED)
def test_the_doctor_says_what_a_model_gets(name, model, capsys):
    options = ["--model", model, "--optim", name, "--optim_args", NAMED[name][1], "--max_steps", "10"]
    assert doctor([*options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    elements = sum(param.numel() for param in tiny.model().parameters())
    assert report["optimizer"]["scaled_elements"] == elements  # vectors too
    running = "importance_decay" in NAMED[name][1]
    assert report["memory"]["labels"] == (4 * elements if running else 0) and report["memory"]["grouping"] == 0
    moments = 2 if name in ("dgs_adamw", "dgs_adam") else 1
    assert report["memory"]["moments"] == 4 * elements * moments
    assert doctor(options) == 0
    text = capsys.readouterr().out
    assert "running importance" in text and "group" not in text and "Verdict: would run" in text


@pytest.mark.parametrize(
    ("name", "form", "per_layer"), [("dgs_sgd", "full", None), ("dgs_sgd", "normalized", 16), ("dgs_lars", "full", 32)]
)
def test_the_doctor_says_what_is_sent(name, form, per_layer, model, tmp_path, capsys):
    config = tmp_path / "fsdp.json"
    config.write_text(json.dumps({"version": 2}))
    options = ["--model", model, "--optim", name, "--optim_args", f"form={form}", "--num_processes", "2"]
    assert doctor([*options, "--fsdp_config", str(config), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    layers = len(list(tiny.model().parameters()))
    assert report["sent"]["all_reduce"] == (8 if per_layer is None else per_layer * layers)
    assert doctor(options) == 0
    assert "Sent in each step  nothing" in capsys.readouterr().out


def test_the_doctor_says_what_target_modules_leave_to_the_base(model, capsys):
    options = ["--model", model, "--optim", "dgs_sgd", "--optim_target_modules", "q_proj"]
    assert doctor([*options, "--json"]) == 0
    found = {one["name"]: one["why_not"] for one in json.loads(capsys.readouterr().out)["parameters"]}
    scaled = [name for name, why in found.items() if why is None]
    assert scaled == [f"model.layers.{index}.self_attn.q_proj.weight" for index in (0, 1)]
    assert set(found.values()) == {None, "not in target modules"}
