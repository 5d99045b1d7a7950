"""`--smoke` and `--variant`: what a recipe holds beside its own settings.

Guards against a smoke run that is not the recipe any more, one that writes where the real run does, and an overlay
whose mistakes show only on the day when it is asked for.
"""

import pytest

from gradscale.cli.train import main
from gradscale.training.errors import ConfigError
from gradscale.training.settings import read_command

RECIPE = """
output_dir: runs/real
model_name_or_path: big/model
dataset_name: allenai/c4
dataset_config_name: en
optim: sgg_adamw
optim_args: {n_clusters: 2, recluster_interval: 500}
lora: {r: 8, lora_alpha: 16, use_dora: true}
learning_rate: 1e-3
max_steps: 1000
bf16: true
variants:
  high: {learning_rate: 1e-2, lora: {use_dora: null}}
  wide: {lora: {r: 64}, output_dir: runs/elsewhere}
  adamw: {optim: adamw_torch, optim_args: null, lora: null}
smoke:
  model_config: {model_type: llama, hidden_size: 8}
  corpus: stdlib
  max_steps: 3
  optim_args: {recluster_interval: 1}
  lora: {r: 2}
"""


def test_without_being_asked_for_they_change_nothing(write):
    plain = read_command([write(RECIPE)])
    alone = read_command([write(RECIPE.partition("variants:")[0], "alone.yaml")])
    assert plain.train == alone.train and plain.trainer == alone.trainer


def test_a_smoke_run_is_the_recipe_but_for_what_it_says(write):
    real, smoke = read_command([write(RECIPE)]), read_command([write(RECIPE), "--smoke"])
    assert smoke.train.model_config == {"model_type": "llama", "hidden_size": 8}
    assert smoke.train.model_name_or_path is None  # the source of the model and of the data are replaced as a whole
    assert smoke.train.corpus == "stdlib"
    assert smoke.train.dataset_name is None and smoke.train.dataset_config_name is None
    assert smoke.trainer["optim_args"] == "n_clusters=2,recluster_interval=1"
    assert smoke.trainer["max_steps"] == 3 and smoke.trainer["use_cpu"] is True
    assert smoke.train.overwrite_output_dir and not smoke.train.plot
    assert smoke.output_dir.as_posix() == "runs/real_smoke"
    for name in ("learning_rate", "bf16", "optim"):
        assert smoke.trainer[name] == real.trainer[name]
    assert smoke.train.lora == {**real.train.lora, "r": 2}


def test_the_command_line_wins_over_a_smoke_run(write):
    options = ["--max_steps", "7", "--output_dir", "mine", "--no_use_cpu", "--no_overwrite_output_dir"]
    smoke = read_command([write(RECIPE), "--smoke", *options])
    assert smoke.trainer["max_steps"] == 7 and smoke.output_dir.as_posix() == "mine"
    assert smoke.trainer["use_cpu"] is False and not smoke.train.overwrite_output_dir
    assert read_command([write(RECIPE), "--smoke", "false"]).trainer["max_steps"] == 1000


def test_variants_are_laid_over_each_other_and_the_smoke_run_over_them(write):
    path = write(RECIPE)
    high = read_command([path, "--variant", "high"])
    assert high.trainer["learning_rate"] == 1e-2 and high.train.lora == {"r": 8, "lora_alpha": 16}
    assert high.output_dir.as_posix() == "runs/real_high"
    both = read_command([path, "--variant", "high", "wide"])
    assert both.train.lora == {"r": 64, "lora_alpha": 16} and both.output_dir.as_posix() == "runs/elsewhere"
    assert read_command([path, "--variant", "high,wide"]).train == both.train
    smoke = read_command([path, "--variant", "adamw", "--smoke"])
    assert smoke.trainer["optim"] == "adamw_torch"
    # What the variant has taken away does not come back with what the smoke run says about it.
    assert smoke.train.lora is None and "optim_args" not in smoke.trainer
    assert smoke.output_dir.as_posix() == "runs/real_adamw_smoke"


def test_a_file_without_a_folder_gets_one_of_its_name(write):
    path = write("corpus: stdlib\nmodel_config: {model_type: llama}\nsmoke: {max_steps: 2}\n")
    assert read_command([path, "--smoke"]).output_dir.as_posix() == "runs/config_smoke"


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ("", ["--smoke"], "config.yaml has no mapping smoke, which says how --smoke makes the recipe tiny"),
        ("smoke: {}", ["--smoke"], "has no mapping smoke"),
        ("smoke: 3", [], "line 3: '3' is not allowed: expected a mapping"),
        ("smoke: {max_step: 3}", [], "line 3, smoke: unknown key 'max_step', did you mean 'max_steps'?"),
        ("smoke: {max_steps: x}", ["--smoke"], "line 3, smoke: max_steps='x' is not allowed: expected an integer"),
        ("smoke: {task: image-classification}", [], "smoke: task is not allowed in it"),
        ("smoke: {smoke: {}}", [], "smoke: smoke is not allowed in it"),
        ("smoke: {seed: 1}", ["--smoke", "3"], "command line: smoke='3' is not allowed: it takes no value"),
        ("variants: {a: 3}", [], "line 3, variants, a=3 is not allowed: expected a mapping"),
        ("variants: {a: {sed: 3}}", [], "line 3, variants, a: unknown key 'sed', did you mean 'seed'?"),
        ("variants: {smoke: {seed: 3}}", [], "a variant cannot be called smoke"),
        ("variants: {lora: {seed: 3}}", ["--variant", "lor"], "has lora, did you mean 'lora'?"),
        ("variants: {a: {seed: 3}}", ["--variant", "a", "a"], "variant='a' is named twice"),
        ("variants: {a: {seed: 3}}", ["--variant"], "variant=nothing is not allowed"),
        ("", ["--variant", "a"], "variant='a' is not allowed: "),
        ("variant: a", [], "line 3: unknown key 'variant'"),
    ],
)
def test_mistakes_are_refused_with_where_they_stand(write, more, options, message):
    path = write(f"corpus: stdlib\nmodel_config: {{model_type: llama}}\n{more}\n")
    with pytest.raises(ConfigError) as caught:
        read_command([path, *options])
    assert message in str(caught.value)


def test_a_smoke_run_that_is_repeated_replaces_itself_and_nothing_else(settings, write, tmp_path, capsys):
    path = write(settings | {"max_steps": 4, "smoke": {"max_steps": 1}})
    for _ in range(2):
        assert main([path, "--smoke"]) == 0
    assert (tmp_path / "out_smoke" / "run.json").is_file() and not (tmp_path / "out").exists()
    assert main([path]) == 0
    assert main([path]) == 2
    assert "already holds a run" in capsys.readouterr().err
