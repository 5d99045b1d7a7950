"""Optimizers of other libraries by name in the Trainer. Guards against a resumed run that is another one, against a
message about state that is not missing, and against a library that is missed only once the model is loaded."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from gradscale.integrations.deepspeed_config import sharding_into_vectors
from gradscale.registry import REGISTRY

SCRIPT = Path(__file__).parent / "scripts" / "named_runs.py"
NAMES = [entry.name for entry in REGISTRY.values() if entry.target.startswith("gradscale.adapter.named.")]


def launch(*args):
    old = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"} if version("transformers").startswith("4.46.") else {}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **old},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_every_name_trains_and_goes_on_in_a_new_process_as_if_never_stopped(tmp_path):
    assert len(NAMES) == 8
    said = launch(tmp_path) + launch(tmp_path, "--resume")
    assert "has no groups" not in said
    for name in NAMES:
        whole, resumed = (torch.load(tmp_path / f"{name}-{kind}.pt") for kind in ("whole", "resumed"))
        assert whole["logged"] == [1, 2, 3, 4, 5, 6], name
        assert (whole["scales"] != 1).any() and torch.equal(whole["scales"], resumed["scales"]), name
        for key, value in whole["weights"].items():
            assert torch.isfinite(value).all() and torch.equal(value, resumed["weights"][key]), (name, key)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_library_is_an_error_with_its_pip_line_before_a_model_is_loaded(name, tmp_path, monkeypatch):
    for library, requirement in REGISTRY[name].requires.items():
        if library == "transformers":
            continue  # without it there is no Trainer
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ImportError) as caught:
            TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True)
        assert f"pip install '{requirement}'" in str(caught.value) and library in str(caught.value)


@pytest.mark.parametrize(
    ("name", "optim_args", "message"),
    [
        ("sgg_came", "clip_treshold=1", "did you mean 'clip_threshold'"),
        ("sgg_apollo_adamw", "rank=0", "rank=0 is not allowed: expected an integer of at least 1"),
        ("sgg_apollo_adamw", "proj_type=left", "scale_type='channel' with proj_type='left' is not allowed"),
        ("sgg_muon", "adamw_lr=-1", "adamw_lr=-1 is not allowed: expected None or a finite number of at least 0"),
        ("sgg_adafactor", "decay_rate=0.8", "decay_rate=0.8 is not allowed"),
        ("sgg_adamw_8bit", "betas=[0.9]", "betas=[0.9] is not allowed: expected two values"),
        ("sgg_adamw_torch_4bit", "bf16_stochastic_round=true", "unknown option bf16_stochastic_round"),
        ("sgg_came", "betas=[0.9,0.99,0.999,0.9]", "expected two or three values"),
    ],
)
def test_wrong_optim_args_are_refused(name, optim_args, message, tmp_path):
    with pytest.raises(ValueError) as caught:
        TrainingArguments(output_dir=str(tmp_path), optim=name, optim_args=optim_args, use_cpu=True)
    assert message in str(caught.value)


def test_zero_stages_that_lay_layers_into_vectors_are_refused():
    (found,) = sharding_into_vectors({"zero_optimization": {"stage": 2}})
    assert '"stage": 2' in found and "steps layers that are whole" in found
    assert sharding_into_vectors({"zero_optimization": {"stage": 0}}) == sharding_into_vectors({}) == []
