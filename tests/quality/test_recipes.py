"""The recipes' arms really run and do what they say: nobody finds out hours into a study that one was plain AdamW.

Every arm is trained for four steps on a tiny model, in one process.
"""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from gradscale.bench.shapes import LLAMAS
from gradscale.quality.cell import Cell, train
from gradscale.quality.optimizers import class_and_options
from gradscale.quality.report import HEADER
from gradscale.quality.study import Arm, Schedule, read_study, study_of
from gradscale.registry import REGISTRY
from gradscale.training.arguments import TrainArguments
from gradscale.training.settings import read_command
from gradscale.training.yaml_file import parse_flow
from tests.training.conftest import make_text

RECIPES = Path(__file__).parents[2] / "recipes/quality"
# AdamMini is told the width and the heads.
TINY = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1}
MODEL = {**TINY, "num_attention_heads": 4, "tie_word_embeddings": False}
# Intervals are the test's own. Warm-up is cut. These may find the same groups as their neighbours in so few elements.
LEFT_OUT = ("sgg-every", "sgg-paper-5-percent", "adamw-warmup", "sgg-warmup", "sgg-minibatch")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What replaces model, data and length of a recipe."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "text.txt").write_text(make_text(60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield {
            "train_files": [str(folder / "text.txt")],
            "vocab_size": 260,
            "block_size": 16,
            "max_eval_tokens": 256,
            "steps": 4,
            "compile": False,
            "precision": "float32",
            "warmup": 0.0,
            "eval_every": 4,
        }


def shrunk(name, changes):
    """The study of a recipe with other keys, grouping at every other step: controls act on the steps between."""
    values = {key: value for key, value in parse_flow((RECIPES / name).read_text()).items() if key != "corpus"}
    arms = {}
    for arm, given in values["optimizers"].items():
        own = {key: value for key, value in given.items() if key != "warmup"}
        if given["optim"] in REGISTRY:
            own["options"] = {**given.get("options", {}), "recluster_interval": 2}
        arms[arm] = own
    return study_of({**values, **changes, "optimizers": arms})


def trained(study):
    results = {}
    for arm in study.arms.values():
        multipliers = () if arm.multipliers_from is None else (("lm_head.weight", 3.0),)
        results[arm.name] = train(study, Cell(arm.name, 1e-2, 1, multipliers))
        assert results[arm.name]["status"] == "finished" and math.isfinite(results[arm.name]["validation_loss"])
        scaled = arm.optim in REGISTRY and arm.options.get("grouping") != "none"
        assert len(results[arm.name]["groupings"]) == (2 if scaled else 0), arm.name
    # One number in float32 is sometimes equal by chance.
    return {name: (result["validation_loss"], *result["train_loss"][-1]) for name, result in results.items()}


@pytest.mark.parametrize("recipe", ["ablations.yaml", "settings.yaml", "optimizers.yaml"])
def test_every_arm_trains_and_differs_from_the_others(tiny, recipe):
    losses = trained(shrunk(recipe, {**tiny, "model_config": MODEL}))
    seen = {}
    for name, loss in losses.items():
        if not name.startswith(LEFT_OUT):
            seen.setdefault(loss, []).append(name)
    alike = [names for names in seen.values() if len(names) > 1]
    assert not alike, alike


def test_every_arm_of_finetuning_trains_what_it_says(tiny, tmp_path):
    from gradscale.training.datasets import open_source
    from gradscale.training.model import build_model, load_tokenizer

    task = TrainArguments(model_config=MODEL, train_files=tiny["train_files"], vocab_size=260, block_size=16)
    tokenizer = load_tokenizer(task, open_source(task))
    tokenizer.save_pretrained(tmp_path)
    build_model(task, tokenizer).save_pretrained(tmp_path)
    losses = trained(shrunk("finetuning.yaml", {**tiny, "model_name_or_path": str(tmp_path)}))
    assert len(set(losses.values())) == len(losses)


@pytest.mark.parametrize("path", sorted(set(RECIPES.glob("*.yaml")) - {RECIPES / "pretrained.yaml"}))
def test_recipes_can_be_read_and_their_optimizers_are_there(path):
    study = read_study(path)
    for arm in study.arms.values():
        class_and_options(arm)
    baseline = study.arms[study.baseline]
    assert baseline.optim not in REGISTRY or baseline.options.get("grouping") == "none"
    # Chosen on other seeds than those that are measured, where there is anything to choose.
    chosen = any(len(arm.learning_rates) > 1 for arm in study.arms.values())
    assert not (chosen and set(study.seeds) & set(study.select_seeds))


def test_the_model_that_finetuning_begins_with_is_where_its_recipe_leaves_it():
    pretrained = parse_flow((RECIPES / "pretrained.yaml").read_text())
    finetuning = parse_flow((RECIPES / "finetuning.yaml").read_text())
    assert finetuning["model_name_or_path"] == pretrained["output_dir"]
    assert finetuning["block_size"] <= pretrained["block_size"]


def test_the_documentation_has_every_key_and_every_column():
    text = (RECIPES.parents[1] / "docs/quality.md").read_text()
    keys = re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE)
    named = {name for cell in keys for name in re.findall(r"`([^`]+)`", cell)}
    of_arms = {field.name for field in dataclasses.fields(Arm)} - {"name", "schedule"}
    of_schedule = {field.name: field.default for field in dataclasses.fields(Schedule)}
    assert of_arms | set(of_schedule) | set(HEADER[1:]) <= named
    defaults = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \| [^|]+ \|$", text, re.MULTILINE))
    shown = {name: f"{value}".removesuffix(".0") for name, value in of_schedule.items()}
    shown = {name: text.lower() if text in ("None", "False") else text for name, text in shown.items()}
    assert {name: defaults[name] for name in shown} == shown
    assert set(LLAMAS) <= set(re.findall(r"`(llama-\w+)`", text))


def test_the_recipe_of_the_pretrained_model_is_one_of_gradscale_train():
    settings = read_command([str(RECIPES / "pretrained.yaml")])
    assert settings.trainer["output_dir"] == "runs/quality-pretrained" and settings.train.model_config == "llama-1m"
