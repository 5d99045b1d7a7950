"""The recipes as they are run for real, read and not trained: sizes, batches, options, and the table of the README.

Guards against a recipe that is another experiment than the one whose number stands beside it.
"""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gradscale.sweep.grid import read_axes
from gradscale.sweep.sweep import make_cells
from gradscale.training.adapters import lora_config
from gradscale.training.settings import read_command, training_arguments
from gradscale.training.task import read_task
from tests.recipes.names import FOLDER, RECIPES, title, variants_of

# Parameters with the 32,100 tokens of T5, steps, LoRA's rank (GaLore, arXiv 2403.03507, Table 2)
SIZES = {
    "60m": (58e6, 10_000, 128),
    "130m": (134e6, 20_000, 256),
    "350m": (368e6, 60_000, 256),
    "1b": (1.34e9, 100_000, 512),
}
ALL = [
    (path, variant)
    for path in RECIPES
    if read_task([str(path)]) == "language-modeling"
    for variant in (None, *variants_of(path))
]


def settings_of(path, variant, *options):
    chosen = [] if variant is None else ["--variant", variant]
    return read_command([str(path), *chosen, "--use_cpu", "--report_to", "none", *options])


@pytest.mark.parametrize(("path", "variant"), ALL, ids=title)
def test_the_options_are_those_of_the_optimizer(path, variant):
    settings = settings_of(path, variant)
    for name in settings.optimizers:
        assert training_arguments(settings, name, Path("unused")).optim == name
    if settings.trainer["optim"].startswith("sgg_") and path.parent != FOLDER:
        given = settings.trainer["optim_args"]
        assert (
            "preset=paper" in given
            and "n_clusters=3" in given
            and "scale_decay=0.99" in given
            and "scale_bounds=[0.1,10]" in given
        )


@pytest.mark.parametrize("size", SIZES)
def test_pretraining_is_the_papers(size):
    parameters, steps, rank = SIZES[size]
    path = FOLDER / "pretrain" / f"llama_{size}.yaml"
    assert variants_of(path) == ["adamw", "came", "apollo", "lora", "lora_adamw", "8bit"]
    settings = settings_of(path, None)
    trainer, train = settings.trainer, settings.train
    assert trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] == 512
    assert train.block_size == 256 and train.streaming and train.dataset_name == "allenai/c4"
    assert trainer["max_steps"] == steps and trainer["warmup_steps"] == steps // 10 and trainer["bf16"]
    assert trainer["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
    assert "recluster_interval=500" in trainer["optim_args"]
    for variant in ("lora", "lora_adamw"):
        assert settings_of(path, variant).train.lora["r"] == rank

    with torch.device("meta"):
        model = model_of(train, vocab_size=32_100)
    assert sum(param.numel() for param in model.parameters()) == pytest.approx(parameters, rel=0.01)


def model_of(train, vocab_size):
    config = dict(train.model_config)
    model_type = config.pop("model_type")
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=vocab_size, **config))


def test_the_four_sizes_differ_in_their_sizes_alone():
    """One of them is run in all its variants, on behalf of the others."""
    different = {"model_config", "lora", "max_steps", "warmup_steps", "eval_steps", "save_steps", "learning_rate"}
    different |= {"per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"}
    different |= {"output_dir"}
    for variant in variants_of(FOLDER / "pretrain" / "llama_60m.yaml"):
        kinds = []
        for size in SIZES:
            path = FOLDER / "pretrain" / f"llama_{size}.yaml"
            settings, smoke = settings_of(path, variant), settings_of(path, variant, "--smoke")
            kind = {name: str(value) for name, value in {**vars(settings.train), **settings.trainer}.items()}
            kind = {name: re.sub(r"rank=\d+", "rank", text) for name, text in kind.items() if name not in different}
            kind |= {f"smoke {name}": smoke.trainer[name] for name in ("max_steps", "warmup_steps", "bf16")}
            kinds.append(kind)
        assert all(kind == kinds[0] for kind in kinds)


def test_lora_in_pretraining_trains_all_but_the_matrices_of_the_blocks():
    """The paper's baseline: a frozen random matrix under each adapter, everything else trained whole."""
    from peft import get_peft_model

    train = settings_of(FOLDER / "pretrain" / "llama_60m.yaml", "lora", "--smoke").train
    model = model_of(train, vocab_size=99)
    model = get_peft_model(model, lora_config(train.lora))
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    layers = {name for name in frozen if not name.endswith(".original_module.weight")}
    assert len(layers) == 2 * 7 and all(name.endswith("_proj.base_layer.weight") for name in layers)
    copies = {name.replace("original_module", "modules_to_save.default") for name in frozen - layers}
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert copies <= trained and len(copies) == 2 + 2 * 2 + 1  # embedding, head, two norms a block, the last norm


def test_a_smoke_run_can_be_swept(tmp_path):
    axes = read_axes(["learning_rate=1e-2,1e-3", "gradient_accumulation_steps=1,2"])
    cells = make_cells(FOLDER / "sft" / "alpaca.yaml", axes, ["--variant", "adamw", "--smoke"], tmp_path)
    assert len(cells) == 4
    for cell in cells:
        settings = read_command(cell.command)
        assert settings.trainer["max_steps"] == 6 and settings.trainer["optim"] == "adamw_torch_fused"
        assert settings.output_dir.is_relative_to(tmp_path)


def commands():
    """The commands of the README's table and of the comments at the head of the recipes."""
    texts = [(FOLDER / "README.md").read_text(), *(path.read_text() for path in RECIPES)]
    lines = "\n".join(re.sub(r"^#", "", text, flags=re.MULTILINE) for text in texts).replace("\\\n", " ")
    found = re.findall(r"gradscale(?:\.cli\.main)? train +(recipes/\S+\.yaml)([^`\n|]*)", lines)
    return sorted({(path, re.sub(r"\s+#.*", "", options).strip()) for path, options in found})


def test_every_command_that_is_written_down_is_understood():
    found = commands()
    assert len(found) > 20
    for path, options in found:
        words = [word.strip("'\"") for word in options.split() if word != "..."]
        if read_task([str(FOLDER.parent / path), *words]) == "language-modeling":
            read_command([str(FOLDER.parent / path), *words])


def test_every_recipe_and_variant_stands_in_the_table():
    table = (FOLDER / "README.md").read_text()
    for path in RECIPES:
        assert f"({path.relative_to(FOLDER)})" in table, path
        for variant in variants_of(path):
            command = f"{path.relative_to(FOLDER.parent)} --variant {variant}`"
            assert command in table, command
