"""Guards against studies that compare something else than what was asked for, and against errors that come late."""

import dataclasses
import subprocess
import sys

import pytest

from gradscale.cli.train import help_text, main, study_help_text
from gradscale.training.errors import ConfigError
from gradscale.training.settings import read_command
from gradscale.training.task import read_task
from gradscale.vision.arguments import StudyArguments
from gradscale.vision.settings import cell_arguments, read_study

RESETS = {"soft": {"nesterov": True}, "hard": {"nesterov": False}}


def method(**changes):
    values = {"table": "SGD", "name": "Baseline", "optim": "sgd", "learning_rate": 0.1} | changes
    return {name: value for name, value in values.items() if value is not None}


def test_the_task_decides(write, settings):
    language = "corpus: stdlib\nmodel_config: {model_type: llama}\n"
    assert read_task([write(settings)]) == "image-classification"
    assert read_task([write(settings), "--task", "language-modeling"]) == "language-modeling"
    assert read_task([write(language)]) == read_task(["missing.yaml"]) == "language-modeling"
    plain, named = (read_command([write(language + more)]) for more in ("", "task: language-modeling\n"))
    assert (plain.train, plain.trainer) == (named.train, named.trainer)
    with pytest.raises(ConfigError, match=r"line 1: task='image-clasification' is not allowed: expected one of .*mean"):
        read_task([write("task: image-clasification\n")])
    with pytest.raises(ConfigError, match="command line: task=nothing is not allowed"):
        read_task([write(language), "--task"])


def test_a_methods_settings_reach_the_trainer(write, settings):
    settings["methods"] = [
        method(optim_args={"momentum": 0.9}, reset_args=RESETS),
        method(table="Adam", optim="adamw_torch", learning_rate=1e-3, weight_decay=0, name="Adam!"),
    ]
    settings |= {"models": {"resnet20": "soft", "resnet32": ["soft", "hard"]}, "seeds": [3, 1], "weight_decay": 1e-4}
    study = read_study([write(settings)])
    cells = study.cells
    assert len(cells) == 2 * (1 + 2 + 2)  # Adam has no resets: one run per model and seed
    assert [cell.seed for cell in cells] == [3] * 5 + [1] * 5  # seed by seed
    assert [(cell.model, cell.method.table, cell.reset) for cell in cells[:5]] == [
        ("resnet20", "SGD", "soft"),
        ("resnet20", "Adam", None),
        ("resnet32", "SGD", "soft"),
        ("resnet32", "SGD", "hard"),
        ("resnet32", "Adam", None),
    ]
    assert len({cell.folder for cell in cells}) == len(cells)
    assert cells[3].folder.as_posix() == "cells/resnet32/sgd-baseline-hard/seed-3"
    assert cells[4].folder.as_posix() == "cells/resnet32/adam-adam/seed-3"
    sgd, adam = (cell_arguments(study, cell) for cell in cells[3:5])
    assert (sgd.optim, sgd.optim_args) == ("sgd", "momentum=0.9,nesterov=False")
    assert (sgd.learning_rate, sgd.weight_decay, sgd.seed) == (0.1, 1e-4, 3)
    assert (adam.optim, adam.optim_args, adam.learning_rate, adam.weight_decay) == ("adamw_torch", None, 1e-3, 0)
    assert sgd.eval_strategy == adam.eval_strategy == "steps" and sgd.eval_steps == 2 and sgd.save_strategy == "no"
    assert sgd.output_dir.endswith("out/cells/resnet32/sgd-baseline-hard/seed-3")


def test_the_command_line_wins(write, settings):
    options = ["--max_steps", "7", "--seeds", "4", "5", "--data", "cifar10", "--target_accuracy=80"]
    study = read_study([write(settings), *options, "--models", "{resnet14: hard}"])
    assert study.trainer["max_steps"] == 7 and study.study.seeds == [4, 5] and study.study.data == "cifar10"
    assert study.study.target_accuracy == 80 and study.models == {"resnet14": ("hard",)}
    assert read_study([write(settings), "--seeds", "4"]).study.seeds == [4]
    given = "[{table: A, name: B, optim: adamw_torch, learning_rate: 1e-3}]"
    assert read_study([write(settings), "--methods", given]).methods[0].optim == "adamw_torch"
    del settings["seeds"]
    assert read_study([write(settings)]).study.seeds == [0, 1, 2]


def test_settings_for_the_digits_count_where_the_digits_are_the_data(write, settings):
    settings |= {
        "data": "cifar10",
        "digits_settings": {"max_steps": 9, "warmup_steps": 3, "models": {"resnet8": "hard"}},
    }
    cifar, digits = read_study([write(settings)]), read_study([write(settings), "--data", "digits"])
    assert cifar.trainer["max_steps"] == 4 and cifar.models == {"resnet8": ("soft",)}
    assert digits.trainer["max_steps"] == 9 and digits.trainer["warmup_steps"] == 3
    assert digits.models == {"resnet8": ("hard",)}
    both = read_study([write(settings), "--data", "digits", "--max_steps", "5"])
    assert both.trainer["max_steps"] == 5 and both.trainer["warmup_steps"] == 3


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"max_step": 3}, [], "study.yaml, line 21: unknown key 'max_step', did you mean 'max_steps'?"),
        ({"block_size": 3}, [], "unknown key 'block_size'"),
        ({"tas": "x"}, [], "unknown key 'tas', did you mean 'task'?"),
        ({}, ["--seed", "1"], "command line: seed is not allowed in image-classification: set seeds"),
        ({"learning_rate": 1}, [], "learning_rate is not allowed in image-classification: it belongs to each of the"),
        ({"num_train_epochs": 1}, [], "num_train_epochs is not allowed in image-classification: set max_steps"),
        ({"max_steps": None}, [], "max_steps is missing"),
        ({"max_steps": -1}, [], "max_steps=-1 is not allowed: expected an integer of at least 1"),
        ({"eval_steps": None}, [], "eval_steps is missing"),
        ({"data": None}, [], "data is missing"),
        ({"methods": None}, [], "methods is missing"),
        ({"target_accuracy": None}, [], "target_accuracy is missing"),
        ({"target_accuracy": 0.95}, [], "target_accuracy=0.95 is not allowed: expected a percentage above 1"),
        ({"target_accuracy": 101}, [], "target_accuracy=101.0 is not allowed"),
        ({"validation_fraction": 0}, [], "validation_fraction=0.0 is not allowed"),
        ({"seeds": []}, [], "seeds=[] is not allowed: expected different integers"),
        ({}, ["--seeds", "1", "1"], "seeds=[1, 1] is not allowed: expected different integers"),
        ({}, ["--seeds", "-1"], "seeds=[-1] is not allowed"),
        ({}, ["--seeds", "a"], "seeds='a' is not allowed: expected a list"),
        ({"models": {"resnet21": "soft"}}, [], "unknown model 'resnet21': expected one of resnet8, resnet14, resnet20"),
        ({"models": {"resnet20": "sof"}}, [], "resnet20='sof' is not allowed: expected soft, hard or [soft, hard]"),
        ({"models": {"resnet20": []}}, [], "resnet20=[] is not allowed"),
        ({"models": {"resnet20": ["soft", "soft"]}}, [], "is not allowed: expected soft, hard or [soft, hard]"),
        ({"models": {}}, [], "models={} is not allowed"),
        ({}, ["--models", "resnet20"], "models='resnet20' is not allowed: expected a mapping"),
        ({"methods": []}, [], "methods=[] is not allowed"),
        ({"methods": ["sgd"]}, [], "methods=['sgd'] is not allowed: expected a list"),
        ({"methods": [method(lr=1)]}, [], "methods, number 1: unknown key 'lr'; known: table, name, optim,"),
        ({"methods": [method(learning_rate=None)]}, [], "methods, number 1: learning_rate is missing"),
        ({"methods": [method(learning_rate="fast")]}, [], "learning_rate='fast' is not allowed: expected a finite"),
        ({"methods": [method(learning_rate=-1)]}, [], "learning_rate=-1.0 is not allowed: expected a number"),
        ({"methods": [method(weight_decay=-1)]}, [], "weight_decay=-1.0 is not allowed"),
        ({"methods": [method(optim="adamw_trch")]}, [], "methods, number 1: optim='adamw_trch' is not allowed"),
        ({"methods": [method(optim_args=3)]}, [], "optim_args='3' is not allowed: expected a mapping"),
        ({"methods": [method(name="!?")]}, [], "name='!?' is not allowed: expected letters or digits"),
        ({"methods": [method(), method(name="baseline")]}, [], "number 2: table='SGD' with name='baseline' is taken"),
        ({"methods": [method(name="a", reset_args=RESETS), method(name="a soft")]}, [], "number 2: table='SGD' with"),
        ({"methods": [method(reset_args={"warm": {}})]}, [], "reset_args has 'warm', expected soft or hard"),
        ({"methods": [method(reset_args={"soft": 1})]}, [], "soft=1 is not allowed: expected a mapping"),
        ({"methods": [method(reset_args={"hard": {}})]}, [], "but reset_args of SGD Baseline has no 'soft'"),
        ({"digits_settings": 3}, [], "digits_settings='3' is not allowed: expected a mapping"),
        ({"digits_settings": {"max_step": 3}}, [], "digits_settings: unknown key 'max_step', did you mean"),
        ({"digits_settings": {"data": "x"}}, [], "digits_settings: data is not allowed in it"),
        ({"digits_settings": {"seed": 1}}, [], "digits_settings: seed is not allowed in image-classif"),
        ({}, ["--resume_from_checkpoint", "out/x"], "resume_from_checkpoint='out/x' is not allowed"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(write, settings, changes, options, message):
    with pytest.raises(ConfigError) as caught:
        read_study([write(settings | changes), *options])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_settings_for_the_digits_are_refused_also_where_they_do_not_count(write, settings):
    with pytest.raises(ConfigError, match="unknown key 'max_step'"):
        read_study([write(settings | {"data": "cifar10", "digits_settings": {"max_step": 3}})])


def test_options_of_the_last_method_are_checked_before_the_first_runs(write, settings, capsys, tmp_path):
    wrong = method(table="SGG", optim="sgg_adamw", optim_args={"n_cluster": 2})
    assert main([write(settings | {"methods": [method(), wrong]})]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'n_clusters'?" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(write, settings, monkeypatch):
    study = read_study([write(settings)])
    monkeypatch.setattr("transformers.TrainingArguments.world_size", property(lambda self: 2))
    with pytest.raises(ConfigError, match="image-classification runs in one process, not in 2"):
        cell_arguments(study, study.cells[0])


def test_the_help_names_every_key(capsys):
    assert main(["--task", "image-classification", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.strip() == study_help_text()
    for field in dataclasses.fields(StudyArguments):
        assert f"--{field.name} " in out
    assert max(map(len, out.splitlines())) <= 130
    assert "--task image-classification --help" in help_text()


def test_help_and_a_wrong_task_load_no_torch(tmp_path):
    (tmp_path / "a.yaml").write_text("task: images\n")
    code = (
        "import sys; from gradscale.cli.main import main\n"
        "codes = [main(['train', '--task', 'image-classification', '--help']), main(['train', 'a.yaml'])]\n"
        "print(codes, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[0, 2] False False"
    assert "task='images' is not allowed" in done.stderr and "Traceback" not in done.stderr
