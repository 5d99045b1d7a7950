"""Guards against a recipe that asks for another study than the paper's, or for one that no CPU finishes."""

from pathlib import Path

import pytest
import yaml

from gradscale.vision.settings import cell_arguments, read_study

RECIPE = Path(__file__).parents[2] / "recipes" / "dgs_cifar10.yaml"
# The optimizers of the recipe, and what stands in for them here, with the options that both know.
STAND_INS = {"dgs_lars": "sgd", "dgs_adam": "adamw_torch"}


@pytest.fixture
def recipe(write):
    """The recipe with optimizers that do not depend on the options of DGS."""
    settings = yaml.safe_load(RECIPE.read_text())
    for method in settings["methods"]:
        method["optim"] = STAND_INS.get(method["optim"], method["optim"])
        method["optim_args"] = {}
    return write(settings)


@pytest.mark.parametrize("data", ["cifar10", "digits"])
def test_the_study_is_the_papers(recipe, data):
    study = read_study([recipe, "--data", data, "--use_cpu"])
    assert study.models == {"resnet20": ("soft",), "resnet32": ("hard",)}
    assert [(method.table, method.name) for method in study.methods] == [
        ("LARS", "Baseline"),
        ("LARS", "DGS"),
        ("Adam", "Baseline"),
        ("Adam", "DGS"),
    ]
    assert study.study.seeds == [0, 1, 2] and len(study.cells) == 24
    for cell in study.cells:
        assert cell.reset == (None if cell.method.name == "Baseline" else study.models[cell.model][0])
        if cell.reset is not None:
            assert cell.method.options(cell.reset)["reset"] == cell.reset


def test_all_combinations_of_networks_and_resets_can_be_asked_for(recipe):
    models = "{resnet20: [soft, hard], resnet32: [soft, hard]}"
    study = read_study([recipe, "--models", models])
    assert len(study.cells) == 3 * 2 * (2 * 1 + 2 * 2)  # seeds, networks, baselines, DGS with both resets


def test_the_digits_are_a_small_study_in_a_folder_of_its_own(recipe):
    cifar, digits = read_study([recipe]), read_study([recipe, "--data", "digits"])
    assert cifar.output_dir != digits.output_dir
    assert cifar.trainer["max_steps"] == 64_000 and digits.trainer["max_steps"] <= 500
    arguments = cell_arguments(read_study([recipe, "--data", "digits", "--use_cpu"]), digits.cells[0])
    assert arguments.save_strategy == "no" and arguments.weight_decay == 1e-4
