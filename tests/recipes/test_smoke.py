"""Every recipe of `gradscale train`, and its variants, as its `--smoke` runs it: a few tiny steps in this process.

Guards against recipes that nobody can start, that train with another optimizer than they say, or that train what they
should leave alone. What can be seen without training is in test_settings.py.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gradscale.cli.train import main
from gradscale.registry import REGISTRY
from gradscale.training.output_folder import find_checkpoints
from gradscale.training.settings import read_command
from gradscale.training.task import read_task
from gradscale.training.timing import StepTimer, inner_optimizer
from tests.recipes.names import RECIPES, title, variants_of

# The four sizes differ in numbers alone (test_settings.py): one of them is run in all its variants.
LIKE_THE_60M = ("llama_130m", "llama_350m", "llama_1b")
RUNS = [
    (path, variant)
    for path in RECIPES
    for variant in (None, *variants_of(path))
    if path.stem not in LIKE_THE_60M or variant == "lora"
]
LANGUAGE = [run for run in RUNS if read_task([str(run[0])]) == "language-modeling"]

pytestmark = pytest.mark.usefixtures("frozen_garbage")


@pytest.fixture
def optimizers(monkeypatch):
    """The optimizers that runs have stepped, in their order."""
    seen = []
    on_train_end = StepTimer.on_train_end

    def record(self, args, state, control, **kwargs):
        seen.append(inner_optimizer(kwargs["optimizer"]))
        on_train_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(StepTimer, "on_train_end", record)
    return seen


def command_of(path, variant, folder):
    chosen = [] if variant is None else ["--variant", variant]
    return [str(path), "--smoke", *chosen, "--output_dir", str(folder), "--disable_tqdm"]


@pytest.mark.parametrize(("path", "variant"), LANGUAGE, ids=title)
def test_a_language_model_is_trained_and_saved(path, variant, tmp_path, optimizers):
    folder = tmp_path / "run"
    command = command_of(path, variant, folder)
    assert main(command) == 0
    settings = read_command(command)
    summary = json.loads((folder / "summary.json").read_text())["runs"]
    assert [run["optim"] for run in summary] == settings.optimizers and len(optimizers) == len(summary)
    for run, optimizer in zip(summary, optimizers, strict=True):
        assert run["status"] == "finished" and run["global_step"] == settings.trainer["max_steps"]
        assert math.isfinite(run["train_loss"]) and 0 < run["validation_loss"] < 8
        own = folder if len(summary) == 1 else folder / run["optim"]
        _check_optimizer(optimizer, run, own)
        kept = (3, 6) if settings.trainer["save_total_limit"] == 2 else (6,)
        assert [path.name for path in find_checkpoints(own)] == [f"checkpoint-{step}" for step in kept]
        _check_saved(own, run, settings.train)


def _check_optimizer(optimizer, run, folder):
    if run["optim"] in REGISTRY:
        assert type(optimizer) is REGISTRY[run["optim"]].load()
    else:
        assert run["optim"] == "adamw_torch_fused" and type(optimizer) is torch.optim.AdamW
    if run["optim"].startswith("sgg_"):
        rows = [json.loads(line) for line in (folder / "scales.jsonl").read_text().splitlines()]
        scales = [scale for layer in rows[-1]["layers"].values() for scale in layer["scales"]]
        assert all(map(math.isfinite, scales)) and any(scale != 1 for scale in scales)


def _check_saved(folder, run, train):
    if train.lora is None:
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert sum(param.numel() for param in model.parameters()) == run["parameters"] == run["trained_parameters"]
        return
    from peft import AutoPeftModelForCausalLM

    assert not (folder / "model.safetensors").exists() and run["trained_parameters"] < run["parameters"]
    saved = load_file(folder / "adapter_model.safetensors")
    trained = [name for name in saved if "lora_B" in name]
    assert len(trained) == 2 * 7 and all(saved[name].abs().max() > 0 for name in trained)
    assert any("magnitude" in name for name in saved) == bool(train.lora.get("use_dora"))
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[_in_model(name)], value) for name, value in saved.items())
    # What lies below is as it was made: the run's folder has it, and nothing has trained it.
    base = load_file(folder / "base" / "model.safetensors")
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        whole = f"model.layers.1.{name}.weight"
        below = loaded[f"base_model.model.{whole.replace('.weight', '.base_layer.weight')}"]
        assert torch.equal(below.float(), base[whole].float())
    kept = {name for name in train.lora.get("modules_to_save") or []}
    assert kept == {part for part in kept if any(part in name for name in saved)}


def _in_model(name):
    """Return the name of a saved adapter's tensor in the model that has it."""
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        name = name.replace(f".{part}.weight", f".{part}.default.weight")
    if name.endswith("lora_magnitude_vector"):
        return f"{name}.default.weight"
    if "lora_" not in name:
        module, _, leaf = name.rpartition(".")
        return f"{module}.modules_to_save.default.{leaf}"
    return name


@pytest.mark.parametrize("path", [path for path in RECIPES if read_task([str(path)]) != "language-modeling"], ids=title)
def test_images_are_classified(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(path), "--smoke"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("_smoke")
    cells = json.loads((folder / "summary.json").read_text())["cells"]
    assert len(cells) == 8 and {cell["status"] for cell in cells} == {"finished"}
    assert {cell["model"] for cell in cells} == {"resnet8", "resnet14"}
    assert "DGS" in (folder / "tables.md").read_text()
