"""What `gradscale doctor` says of bases of other libraries: what they would keep, and where they cannot run.

Guards against memory that is guessed, and against a verdict that differs from what the run would meet.
"""

import pytest
import torch
from torch import nn

from gradscale.doctor.adapter_memory import BaseStates, _bytes
from tests.adapter.named_bases import OPTIONS, named
from tests.cli.doctor_runs import TINY, accelerate, ask, options_of, write


@pytest.fixture
def tiny(tmp_path):
    return write(tmp_path, "config.json", {**TINY, "hidden_size": 96, "vocab_size": 200, "dtype": "float32"})


class Large(nn.Module):
    """More elements than are stepped as they are, in no multiple of a block."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(1280, 300)
        self.wide = nn.Linear(300, 1280, bias=False)
        self.deep = nn.Linear(1280, 1030, bias=False)
        self.tall = nn.Linear(1030, 260, bias=False)
        self.head = nn.Linear(260, 1030, bias=False)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_a_base_keeps_of_a_large_matrix_is_told_without_stepping_it(name):
    torch.manual_seed(0)
    model = Large()
    optimizer = named(name, model)
    states, told = BaseStates(optimizer), {}
    for group in optimizer.param_groups:
        for param in group["params"]:
            told[param] = states.bytes_of(param.shape, param.dtype, group)
            param.grad = torch.randn_like(param)
    optimizer.base_optimizer.step()
    for param, found in told.items():
        real = _bytes(optimizer.base_optimizer.state[param], 4)
        assert found == pytest.approx(real, rel=0.005), tuple(param.shape)


@pytest.mark.parametrize("name", ["sgg_came", "sgg_adafactor", "sgg_muon"])
def test_the_state_of_a_run_is_what_was_told(name, tiny, tmp_path, capsys):
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

    report = ask(capsys, "--model", tiny, "--optim", name)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny))
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path), optim=name, use_cpu=True, report_to="none", max_steps=100)
    )
    optimizer = trainer.create_optimizer()
    optimizer.set_total_steps(100)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    states = optimizer.state_dict()["state"].values()
    assert report["memory"]["state"] == sum(_bytes(state, 4) for state in states)
    assert report["memory"]["labels"] == sum(state["sgg_labels"].numel() for state in states if "sgg_labels" in state)


def test_the_options_are_those_of_the_base_and_of_sgg(tiny, capsys):
    given = "rank=4,scale_decay=0.5"
    options = ask(capsys, "--model", tiny, "--optim", "sgg_apollo_adamw", "--optim_args", given)["optimizer"]["options"]
    assert (options["rank"], options["scale_decay"], options["update_proj_gap"]) == (4, 0.5, 200)
    assert options["kept_momentum"] == "gradient"


@pytest.mark.parametrize(
    ("name", "engine", "words"),
    [
        ("sgg_muon", "fsdp1", "lays several into one vector"),
        ("sgg_adamw_torch_8bit", "zero", "lays several into one vector"),
        ("sgg_came", "fsdp2", "cannot step a layer of which FSDP2"),
        ("sgg_muon", "fsdp2", None),
        ("sgg_came", "ddp", None),
    ],
)
def test_the_verdict_is_what_the_run_would_meet(name, engine, words, tiny, tmp_path, capsys):
    kinds = {
        "fsdp1": accelerate("FSDP", fsdp_config={"fsdp_version": 1}),
        "fsdp2": accelerate("FSDP", fsdp_config={"fsdp_version": 2}),
        "zero": accelerate("DEEPSPEED", deepspeed_config={"zero_stage": 2}),
        "ddp": accelerate("MULTI_CPU"),
    }
    report = ask(capsys, "--model", tiny, "--optim", name, *options_of(tmp_path, kinds[engine]), code=1 if words else 0)
    assert report["would_run"] is (words is None)
    if words:
        assert words in report["not_supported"][0]
    assert ("memory" in report) is (engine not in ("fsdp1", "zero"))
