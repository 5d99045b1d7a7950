"""Guards against settings that are taken silently for something else, and against tracebacks for a typing error."""

import pytest
from transformers import TrainingArguments

from gradscale.training.errors import ConfigError
from gradscale.training.settings import read_command, training_arguments
from gradscale.training.task import read_task

MINIMAL = "corpus: stdlib\nmodel_config: {model_type: llama}\n"


@pytest.mark.parametrize(
    ("yaml_text", "options", "name", "expected"),
    [
        ("learning_rate: 1e-3", [], "learning_rate", 1e-3),
        ("learning_rate: 1e-3", ["--learning_rate", "2e-3"], "learning_rate", 2e-3),
        ("learning-rate: 1e-3", ["--learning-rate=2e-3"], "learning_rate", 2e-3),
        ("", ["--max_steps", "-1"], "max_steps", -1),
        ("eval_strategy: no", [], "eval_strategy", "no"),
        ("save_strategy: 'no'", [], "save_strategy", "no"),
        ("run_name: 007", [], "run_name", "007"),
        ("bf16: yes", [], "bf16", True),
        ("", ["--bf16"], "bf16", True),
        ("bf16: true", ["--no_bf16"], "bf16", False),
        ("bf16: true", ["--bf16", "false"], "bf16", False),
        ("lr_scheduler_kwargs: {min_lr: 1e-4}", [], "lr_scheduler_kwargs", {"min_lr": 1e-4}),
        ("", ["--lr_scheduler_kwargs", '{"min_lr": 1e-4}'], "lr_scheduler_kwargs", {"min_lr": 1e-4}),
        ("report_to: [tensorboard]", [], "report_to", ["tensorboard"]),
        ("optim_args: {betas: [0.9, 0.95], labels: live, n_clusters: 2}", [], "optim_args",
         "betas=[0.9,0.95],labels=live,n_clusters=2"),
        ("optim_args: n_clusters=2", [], "optim_args", "n_clusters=2"),
        ("optim_target_modules: [q_proj, v_proj]", [], "optim_target_modules", ["q_proj", "v_proj"]),
        ("logging_steps: 0.1", [], "logging_steps", 0.1),
    ],
)  # fmt: skip
def test_file_and_command_line_mean_the_same(write, yaml_text, options, name, expected):
    settings = read_command([write(MINIMAL + yaml_text + "\n"), *options])
    assert settings.trainer[name] == expected
    assert type(settings.trainer[name]) is type(expected)


def test_our_keys(write):
    settings = read_command(
        [
            write(MINIMAL + "compare_optim: [sgd, adafactor]\nmax_train_tokens: null\n"),
            "--block_size",
            "64",
            "--no_plot",
        ]
    )
    assert settings.train.model_config == {"model_type": "llama"}
    assert settings.train.compare_optim == ["sgd", "adafactor"] and settings.train.max_train_tokens is None
    assert settings.train.block_size == 64 and settings.train.plot is False
    assert settings.output_dir.as_posix() == "runs/config"
    assert read_command([write(MINIMAL), "--compare_optim", "sgd,adafactor"]).optimizers[1:] == ["sgd", "adafactor"]
    assert read_command([write(MINIMAL), "--compare_optim", "sgd", "adafactor"]).optimizers[1:] == ["sgd", "adafactor"]
    assert read_command([write(MINIMAL), "--compare_optim", "[sgd, adafactor]"]).optimizers[1:] == ["sgd", "adafactor"]
    none = read_command([write(MINIMAL + "compare_optim: [sgd]\n"), "--compare_optim", "[]"])
    assert len(none.optimizers) == 1


def test_a_source_on_the_command_line_replaces_that_of_the_file(write):
    path = write("dataset_name: allenai/c4\ndataset_config_name: en\nmodel_name_or_path: gpt2\n")
    settings = read_command([path, "--corpus", "stdlib", "--model_config", "{model_type: gpt2}"])
    assert settings.train.corpus == "stdlib" and settings.train.dataset_name is None
    assert settings.train.dataset_config_name is None
    assert settings.train.model_config == {"model_type": "gpt2"} and settings.train.model_name_or_path is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["last"], "last"),
        (["true"], "last"),
        ([], "last"),
        (["false"], None),
        (["runs/a/checkpoint-3"], "runs/a/checkpoint-3"),
    ],
)
def test_resume(write, value, expected):
    assert read_command([write(MINIMAL), "--resume_from_checkpoint", *value]).resume == expected


def test_the_optimizers_options_belong_to_the_main_one(write, tmp_path):
    path = write(
        MINIMAL + "optim: sgg_adamw\noptim_args: {n_clusters: 2}\ncompare_optim: [adamw_torch]\nuse_cpu: true\n"
    )
    settings = read_command([path])
    first, second = (training_arguments(settings, name, tmp_path / name) for name in settings.optimizers)
    assert isinstance(first, TrainingArguments) and first.optim == "sgg_adamw" and "n_clusters=2" in first.optim_args
    assert second.optim == "adamw_torch" and second.optim_args is None
    assert first.learning_rate == second.learning_rate and first.seed == second.seed


@pytest.mark.parametrize(
    ("yaml_text", "options", "message"),
    [
        ("learning_rat: 1", [], "config.yaml, line 3: unknown key 'learning_rat', did you mean 'learning_rate'?"),
        ("", ["--lerning_rate", "1"], "command line: unknown key 'lerning_rate', did you mean 'learning_rate'?"),
        ("", ["--no_learning_rate"], "unknown key 'no_learning_rate'"),
        ("learning_rate: fast", [], "line 3: learning_rate='fast' is not allowed: expected a finite number"),
        ("learning_rate: nan", [], "learning_rate='nan' is not allowed: expected a finite number"),
        ("learning_rate: [1, 2]", [], "learning_rate=[1, 2] is not allowed: expected a finite number"),
        ("learning_rate: -1", [], "learning_rate=-1.0 is not allowed: expected a number of at least 0"),
        ("", ["--learning_rate"], "learning_rate=nothing is not allowed: expected a finite number"),
        ("", ["--learning_rate", "1", "2"], "learning_rate=['1', '2'] is not allowed"),
        ("max_steps: 10.5", [], "max_steps='10.5' is not allowed: expected an integer"),
        ("max_steps: true", [], "max_steps='true' is not allowed: expected an integer"),
        ("max_steps: 0", [], "max_steps=0 is not allowed: expected an integer of at least 1, or -1"),
        ("per_device_train_batch_size: 0", [], "per_device_train_batch_size=0 is not allowed"),
        ("bf16: maybe", [], "bf16='maybe' is not allowed: expected true or false"),
        ("seed: {a: 1}", [], "seed={'a': 1} is not allowed: expected an integer"),
        ("block_size: null", [], "block_size=None is not allowed: expected an integer"),
        ("block_size: 1", [], "block_size=1 is not allowed: expected an integer of at least 2"),
        ("vocab_size: 100", [], "vocab_size=100 is not allowed: expected an integer of at least 257"),
        ("validation_fraction: 1", [], "validation_fraction=1.0 is not allowed: expected a number in [0, 1)"),
        ("optim: sgg_adamv", [], "optim='sgg_adamv' is not allowed: expected one of"),
        ("optim: sgg_adamww", [], "did you mean 'sgg_adamw'?"),
        ("compare_optim: [adamw_trch]", [], "compare_optim='adamw_trch' is not allowed"),
        ("optim: sgd\ncompare_optim: [sgd]", [], "compare_optim: 'sgd' is named twice"),
        ("lr_scheduler_type: cosin", [], "did you mean 'cosine'?"),
        ("train_files: a.txt", [], "corpus and train_files exclude each other"),
        ("validation_files: a.txt", [], "validation_files is given without train_files"),
        ("seed: 1\nseed: 2", [], "line 4, column 1: the key 'seed' is given twice, first in line 3"),
        ("lr_scheduler_kwargs: {a: 1, a: 2}", [], "the key 'a' is given twice"),
        ("seed: [1", [], "config.yaml, line 4, column 1: expected ',' or ']'"),
        ("seed: 1\n\tx: 2", [], "config.yaml, line 4, column 1: found character '\\t'"),
        ("x: !!python/object:os.system a", [], "line 3"),
        ("", ["stray"], "unexpected argument 'stray'"),
    ],
)  # fmt: skip
def test_errors_say_what_and_where(write, yaml_text, options, message):
    with pytest.raises(ConfigError) as caught:
        read_command([write(MINIMAL + yaml_text + "\n"), *options])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("yaml_text", "message"),
    [
        ("optim: sgg_adamw\noptim_args: {n_cluster: 2}", "did you mean 'n_clusters'?"),
        ("optim: sgg_adamw\noptim_args: {n_clusters: 0}", "n_clusters=0 is not allowed"),
        ("eval_strategy: steps\neval_steps: 10\nsave_steps: 7\nload_best_model_at_end: true", "saving steps"),
        ("report_to: tensorbord", "tensorbord is not supported"),
        ("bf16: true\nfp16: true", "bf16"),
    ],
)
def test_what_the_trainer_refuses_is_a_config_error(write, tmp_path, yaml_text, message):
    settings = read_command([write(MINIMAL + "use_cpu: true\n" + yaml_text + "\n")])
    with pytest.raises(ConfigError) as caught:
        training_arguments(settings, settings.optimizers[0], tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a model is missing: set one of model_name_or_path, model_config"),
        ("model_config: {model_type: llama}", "data is missing: set one of corpus, dataset_name, train_files"),
        ("- a\n- b\n", "expected a mapping of keys to values"),
    ],
)
def test_what_a_file_must_have(write, text, message):
    with pytest.raises(ConfigError) as caught:
        read_command([write(text)])
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        read_command([str(tmp_path / "missing.yaml")])
    with pytest.raises(ConfigError, match="is a folder"):
        read_command([str(tmp_path)])
    (tmp_path / "latin.yaml").write_bytes(b"run_name: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_command([str(tmp_path / "latin.yaml")])
    with pytest.raises(ConfigError, match=r"CONFIG.yaml has to come first, got '--seed'"):
        read_command(["--seed", "1"])


def test_recipes_are_right():
    from pathlib import Path

    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    recipes = [path for path in recipes if read_task([str(path)]) == "language-modeling"]  # others: tests/vision
    assert recipes
    for path in recipes:
        settings = read_command([str(path), "--use_cpu", "--no_bf16"])
        for name in settings.optimizers:
            assert training_arguments(settings, name, Path("unused")).optim == name
