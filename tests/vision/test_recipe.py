"""Guards against a recipe that asks for another study than the paper's, or for one that no CPU finishes."""

from pathlib import Path

import pytest
import torch
import transformers
import yaml

from gradscale.vision.settings import cell_arguments, read_study

RECIPE = str(Path(__file__).parents[2] / "recipes" / "dgs_cifar10.yaml")


@pytest.mark.parametrize("data", ["cifar10", "digits"])
def test_the_study_is_the_papers(data):
    study = read_study([RECIPE, "--data", data, "--use_cpu"])
    assert study.models == {"resnet20": ("soft",), "resnet32": ("hard",)}
    assert [(method.table, method.name, method.optim) for method in study.methods] == [
        ("LARS", "Baseline", "dgs_lars"),
        ("LARS", "DGS", "dgs_lars"),
        ("Adam", "Baseline", "adamw_torch"),
        ("Adam", "DGS", "dgs_adam"),
    ]
    assert study.study.seeds == [0, 1, 2] and len(study.cells) == 24
    for cell in study.cells:
        assert cell.reset == (None if cell.method.name == "Baseline" else study.models[cell.model][0])


def test_every_run_gets_the_optimizer_that_the_recipe_describes():
    study = read_study([RECIPE, "--use_cpu"])
    methods = yaml.safe_load(Path(RECIPE).read_text())["methods"]
    written = {(method["table"], method["name"]): method for method in methods}
    for cell in study.cells:
        arguments = cell_arguments(study, cell)
        kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)
        group = kind([torch.nn.Parameter(torch.ones(2, 2))], **options).param_groups[0]
        method = written[cell.method.table, cell.method.name]
        assert arguments.learning_rate == group["lr"] == float(method["learning_rate"])
        expected = {**method.get("optim_args", {}), **method.get("reset_args", {}).get(cell.reset, {})}
        assert {name: group[name] for name in expected} == pytest.approx(_numbers(expected))
        assert cell.reset is None or group["reset"] == cell.reset


def test_the_baseline_of_lars_is_lars_alone():
    """A DGS whose factor is not exactly 1 would make its own baseline."""
    study = read_study([RECIPE, "--use_cpu"])
    cell = next(cell for cell in study.cells if (cell.method.table, cell.method.name) == ("LARS", "Baseline"))
    kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(cell_arguments(study, cell))
    param = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    param.grad = torch.tensor([[0.0, 2.0]])
    kind([param], **options | {"lr": 1.0, "weight_decay": 0.0}).step()
    # ||w|| / ||g|| is 5 / 2, and the trust coefficient 1e-3.
    torch.testing.assert_close(param.detach(), torch.tensor([[3.0, 4.0 - 1e-3 * 5 / 2 * 2]]), rtol=1e-7, atol=0)


def test_all_combinations_of_networks_and_resets_can_be_asked_for():
    models = "{resnet20: [soft, hard], resnet32: [soft, hard]}"
    study = read_study([RECIPE, "--models", models])
    assert len(study.cells) == 3 * 2 * (2 * 1 + 2 * 2)  # seeds, networks, baselines, DGS with both resets


def test_the_digits_are_a_small_study_in_a_folder_of_its_own():
    cifar, digits = read_study([RECIPE]), read_study([RECIPE, "--data", "digits"])
    assert cifar.output_dir != digits.output_dir
    assert cifar.trainer["max_steps"] == 64_000 and digits.trainer["max_steps"] <= 500
    arguments = cell_arguments(read_study([RECIPE, "--data", "digits", "--use_cpu"]), digits.cells[0])
    assert arguments.save_strategy == "no" and arguments.weight_decay == 1e-4


def _numbers(options):
    # YAML reads 1e-3 as text.
    return {name: float(value) if name in ("sigma", "eps") else value for name, value in options.items()}
