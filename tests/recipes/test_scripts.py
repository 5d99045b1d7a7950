"""The scripts of the paper's fine-tuning experiments, each setting, on tiny models and generated data, in one process.

Guards against a script that trains what it should have frozen, or the other way round; that ignores the optimizer, a
YAML file or a data file; that saves an adapter nobody can load; and against settings that are not the paper's.
"""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, TrainingArguments
from trl import ModelConfig, TrlParser

from tests.recipes.scripts import RECIPES, script, smoke, trained

PAPER = {"preset": "paper", "grouping": "kmeans", "scale_decay": 0.99, "scale_bounds": [0.1, 10]}


def well_trained(results, trainer, optimizer="SGGAdamW"):
    """Check what holds for every run, and return the names of what was trained."""
    losses = results["losses"]
    assert results["optimizer"] == optimizer
    assert all(map(math.isfinite, losses)) and sum(losses[-4:]) < sum(losses[:4])
    assert any("sgg/scale_mean" in entry for entry in trainer.state.log_history) == (optimizer == "SGGAdamW")
    return trained(trainer)


def loads(trainer, base, folder):
    """Check that a new model takes the adapter that was saved, tensor by tensor."""
    found = PeftModel.from_pretrained(base, folder).state_dict()
    adapter = {name: value for name, value in trainer.model.state_dict().items() if "lora_" in name}
    adapter |= {name: value for name, value in trainer.model.state_dict().items() if "modules_to_save" in name}
    assert adapter and all(found[name].equal(value) for name, value in adapter.items())


def test_glue_trains_all_weights_and_reports_each_metric(monkeypatch, tmp_path):
    results, trainers = smoke(monkeypatch, tmp_path, "glue", "full", "--tasks", "mrpc", "stsb", "mnli")
    metrics = {"mrpc": ("accuracy", "f1"), "stsb": ("pearson", "spearman"), "mnli": ("accuracy",)}
    for trainer, (name, expected) in zip(trainers, metrics.items(), strict=True):
        task = results["tasks"][name]
        assert well_trained(task, trainer) == trainer.before.keys()
        assert all(task["metrics"][f"eval_validation_{metric}"] > 0.8 for metric in expected)
        assert (tmp_path / name / "model.safetensors").is_file()
    scores = [task["score"] for task in results["tasks"].values()]
    assert results["average"]["score"] == pytest.approx(sum(scores) / 3)
    assert json.loads((tmp_path / "results.json").read_text())["average"] == results["average"]


@pytest.mark.parametrize("rank", [4, 8])
def test_glue_trains_an_adapter_and_the_head(monkeypatch, tmp_path, rank):
    results, (trainer,) = smoke(monkeypatch, tmp_path, "glue", f"lora_r{rank}", "--tasks", "cola")
    names = well_trained(results["tasks"]["cola"], trainer)
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in names)
    shapes = {param.shape for name, param in trainer.model.named_parameters() if "lora_A" in name}
    assert shapes == {(rank, 32)}
    base = AutoModelForSequenceClassification.from_config(sys.modules["glue_smoke"].model().config)
    loads(trainer, base, tmp_path / "cola")


@pytest.mark.parametrize("setting", ["lora", "dora"])
def test_commonsense_trains_an_adapter_and_answers_all_sets(monkeypatch, tmp_path, setting):
    by = {"lora": "generation", "dora": "likelihood"}[setting]
    results, (trainer,) = smoke(monkeypatch, tmp_path, "commonsense", setting, "--eval_by", by)
    names = well_trained(results, trainer)
    assert all("lora_" in name for name in names)
    assert any("lora_magnitude_vector" in name for name in names) == (setting == "dora")
    assert len(results["accuracy"]) == 8 and results["average"] > 0.8
    size = trainer.model.config.vocab_size
    loads(trainer, sys.modules["commonsense_smoke"].model(size), tmp_path)


@pytest.mark.parametrize("setting", ["full", "lora"])
def test_dpo_trains_and_tells_how_often_the_better_answer_wins(monkeypatch, tmp_path, setting):
    results, (trainer,) = smoke(monkeypatch, tmp_path, "dpo", setting, trainer="DPOTrainer")
    names = well_trained(results, trainer)
    assert results["accuracy"] == results["metrics"]["eval_rewards/accuracies"] > 0.55
    if setting == "full":
        assert names == trainer.before.keys()
    else:
        assert all("lora_" in name for name in names)
        loads(trainer, sys.modules["dpo_smoke"].model(), tmp_path)


def test_the_command_of_the_baseline_takes_another_optimizer(monkeypatch, tmp_path):
    baseline = ["--optim", "adamw_torch_fused", "--optim_args", ""]
    results, (trainer,) = smoke(monkeypatch, tmp_path, "dpo", "full", *baseline, trainer="DPOTrainer")
    assert well_trained(results, trainer, "AdamW") == trainer.before.keys()


def test_llava_trains_projector_and_language_model_with_the_vision_tower_frozen(monkeypatch, tmp_path):
    results, (trainer,) = smoke(monkeypatch, tmp_path, "llava", "full")
    names = well_trained(results, trainer)
    assert names == {name for name in trainer.before if "vision_tower" not in name} < trainer.before.keys()
    assert results["exact_match"] > 0.9 and math.isfinite(results["metrics"]["eval_loss"])


def test_llava_trains_an_adapter_of_the_language_model_and_the_projector(monkeypatch, tmp_path):
    results, (trainer,) = smoke(monkeypatch, tmp_path, "llava", "lora")
    names = well_trained(results, trainer)
    adapter = {name for name in names if "lora_" in name}
    assert len(adapter) == 2 * 7 * 2 and all(".language_model." in name for name in adapter)
    assert all("multi_modal_projector.modules_to_save" in name for name in names - adapter) and names > adapter
    assert results["exact_match"] > 0.5
    loads(trainer, sys.modules["llava_smoke"].model(), tmp_path)


def test_llava_trains_the_projector_alone(monkeypatch, tmp_path):
    results, (trainer,) = smoke(monkeypatch, tmp_path, "llava", "projector")
    names = well_trained(results, trainer)
    assert names == {name for name in trainer.before if "multi_modal_projector" in name} != set()


def settings(recipe, setting, arguments, *classes):
    """What a YAML file says, as the script would take it, but for bf16, which may want a GPU."""
    argv = ["--config", str(RECIPES / recipe / f"{setting}.yaml"), "--bf16", "false", "--use_cpu", *arguments]
    return TrlParser(classes).parse_args_and_config(argv)


def sgg(recipe, setting):
    config = yaml.safe_load((RECIPES / recipe / f"{setting}.yaml").read_text())
    assert config["optim"] == "sgg_adamw"
    return config["optim_args"]


@pytest.mark.parametrize(
    ("setting", "rates"),
    [  # Table A3, in units of 1e-5
        ("full", {"mnli": 2, "sst2": 1, "mrpc": 3, "cola": 3, "qnli": 1, "qqp": 1, "rte": 1, "stsb": 2}),
        ("lora_r4", {"mnli": 2, "sst2": 1, "mrpc": 3, "cola": 3, "qnli": 1, "qqp": 1, "rte": 1, "stsb": 2}),
        ("lora_r8", {"mnli": 2, "sst2": 2, "mrpc": 2, "cola": 3, "qnli": 1, "qqp": 2, "rte": 2, "stsb": 3}),
    ],
)
def test_glue_has_the_papers_settings(setting, rates):
    arguments, model = settings("glue", setting, [], script("glue").GlueArguments, ModelConfig)
    assert sorted(arguments.tasks) == sorted(rates) and arguments.num_train_epochs == 30 and arguments.max_length == 512
    for task, rate in rates.items():
        own = arguments.of_task(task)
        assert own.learning_rate == pytest.approx(rate * 1e-5)
        assert own.per_device_train_batch_size == (32 if task == "cola" else 16)
    assert model.use_peft == (setting != "full") and (not model.use_peft or f"_r{model.lora_r}" in setting)
    assert sgg("glue", setting) == {"n_clusters": 2, "recluster_interval": 500, **PAPER}


def test_glue_takes_a_learning_rate_of_the_command_line_and_refuses_unknown_tasks():
    module = script("glue")
    given = ["--learning_rate", "1e-3", "--per_device_train_batch_size", "4"]
    arguments, _ = settings("glue", "full", given, module.GlueArguments, ModelConfig)
    own = arguments.of_task("cola")
    assert (own.learning_rate, own.per_device_train_batch_size) == (1e-3, 4)
    with pytest.raises(ValueError, match="tasks=wnli: not one of cola"):
        module.GlueArguments(output_dir="unused", tasks=["wnli"])
    with pytest.raises(ValueError, match="learning_rate of cola is neither given nor in task_settings"):
        module.GlueArguments(output_dir="unused", tasks=["cola"])
    with pytest.raises(ValueError, match="give both"):
        settings("glue", "full", ["--train_file", "x.jsonl"], module.GlueArguments, ModelConfig)


@pytest.mark.parametrize("setting", ["lora", "dora"])
def test_commonsense_has_the_papers_settings(setting, tmp_path):
    (tmp_path / "train.json").write_text("[]")
    classes = (script("commonsense").CommonsenseArguments, TrainingArguments, ModelConfig)
    own, arguments, model = settings("commonsense", setting, ["--train_file", f"{tmp_path}/train.json"], *classes)
    assert (arguments.learning_rate, arguments.num_train_epochs, model.lora_r) == (1e-4, 3, 32)
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 32
    assert model.use_peft and model.use_dora == (setting == "dora") and len(own.eval_sets) == 8
    assert sgg("commonsense", setting) == {"n_clusters": 3, "recluster_interval": 500, **PAPER}
    with pytest.raises(ValueError, match="no such file: .*boolq/test.json"):
        own.__class__(train_file=own.train_file, eval_dir=str(tmp_path))


@pytest.mark.parametrize(("setting", "rate"), [("full", 5e-7), ("lora", 5e-6)])
def test_dpo_has_the_papers_settings(setting, rate):
    module = script("dpo")
    own, arguments, model = settings("dpo", setting, [], module.PreferenceArguments, module.DPOConfig, ModelConfig)
    assert own.dataset_name == "trl-lib/ultrafeedback_binarized"
    assert (arguments.learning_rate, arguments.num_train_epochs) == (rate, 1)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 8)
    assert (arguments.eval_steps, arguments.logging_steps) == (50, 25)
    assert arguments.gradient_checkpointing and not arguments.remove_unused_columns
    assert not model.use_peft or (model.lora_r, model.lora_alpha) == (32, 16)
    assert model.use_peft == (setting == "lora")
    assert sgg("dpo", setting) == {"n_clusters": 3, "recluster_interval": 200, **PAPER}


@pytest.mark.parametrize("setting", ["full", "lora"])
def test_llava_has_the_papers_settings(setting):
    classes = (script("llava").LlavaArguments, TrainingArguments, ModelConfig)
    files = ["--train_file", "x.json", "--image_folder", "x"]
    _, arguments, model = settings("llava", setting, files, *classes)
    assert (arguments.learning_rate, arguments.num_train_epochs, arguments.weight_decay) == (2e-5, 1, 0)
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 64
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert arguments.lr_scheduler_type == "cosine" and arguments.get_warmup_steps(1000) == 30
    assert model.use_peft == (setting == "lora")
    assert not model.use_peft or (model.lora_r, model.lora_alpha) == (128, 256)
    assert sgg("llava", setting) == {**PAPER, "n_clusters": 3, "recluster_interval": 1000, "scale_decay": 0.95}


@pytest.mark.parametrize("setting", ["lora", "projector"])
def test_llava_trains_in_float32_what_stands_beside_a_frozen_bfloat16_model(monkeypatch, tmp_path, setting):
    half = ["--dtype", "bfloat16", "--bf16", "true"]
    results, (trainer,) = smoke(monkeypatch, tmp_path, "llava", setting, *half)
    names = well_trained(results, trainer)
    dtypes = {name: param.dtype for name, param in trainer.model.named_parameters()}
    assert {dtypes[name] for name in names} == {torch.float32}
    assert {dtypes[name] for name in dtypes.keys() - names} == {torch.bfloat16}
    assert results["exact_match"] > 0.5


def test_commonsense_trains_an_adapter_of_a_bfloat16_model(monkeypatch, tmp_path):
    half = ["--dtype", "bfloat16", "--bf16", "true"]
    results, (trainer,) = smoke(monkeypatch, tmp_path, "commonsense", "lora", *half)
    names = well_trained(results, trainer)
    assert {param.dtype for name, param in trainer.model.named_parameters() if name in names} == {torch.float32}
    assert results["average"] > 0.5


def test_processes_of_torchrun_share_the_questions(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [RECIPES / "commonsense" / "train.py", "--config", RECIPES / "commonsense" / "lora.yaml", "--smoke"]
    command += ["--ddp_backend", "gloo", "--max_steps", "40", "--output_dir", tmp_path]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    # Four questions of each set, two for each process.
    assert {4 * value for value in results["accuracy"].values()} <= {0, 1, 2, 3, 4} and results["average"] > 0.6
    assert f"average: {results['average']}" in done.stdout


def test_llava_refuses_an_adapter_where_the_projector_alone_is_trained(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="trained=projector with use_peft"):
        smoke(monkeypatch, tmp_path, "llava", "lora", "--trained", "projector")
    assert not list(tmp_path.iterdir())
