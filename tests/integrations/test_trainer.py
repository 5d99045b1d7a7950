"""The Trainer with our optimizers, in one process: parameter groups, run length, logs, trackers, search."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from gradscale import SGGAdamW
from gradscale.integrations.callback import ScaleCallback

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
import tiny  # noqa: E402


def make(tmp_path, trainer_kwargs=None, model=None, **kwargs):
    kwargs = {
        "optim": "sgg_adamw",
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **kwargs,
    }
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **kwargs)
    data = [{"input_ids": torch.arange(4, 14), "labels": torch.arange(4, 14)}] * 16
    trainer_kwargs = trainer_kwargs or {}
    if "model_init" not in trainer_kwargs:
        trainer_kwargs["model"] = model or tiny.model()
    return Trainer(args=args, train_dataset=data, **trainer_kwargs)


def inner(trainer):
    return trainer.optimizer.optimizer


def sgg_steps(trainer):
    return [entry["step"] for entry in trainer.state.log_history if "sgg/scale_mean" in entry]


def test_a_fraction_of_epochs(tmp_path):
    trainer = make(tmp_path, num_train_epochs=2, optim_args="recluster_interval=0.25")
    trainer.train()
    optimizer = inner(trainer)
    assert type(optimizer) is SGGAdamW
    assert {group["total_steps"] for group in optimizer.param_groups} == {16}
    assert sgg_steps(trainer) == [4, 8, 12, 16]
    assert trainer.state.log_history[3]["sgg/layers"] == 14  # neither the embedding nor the head


def test_decay_split_and_frozen_parameters_are_the_trainers(tmp_path):
    model = tiny.model()
    model.model.embed_tokens.requires_grad_(False)
    trainer = make(tmp_path, model=model, weight_decay=0.1, max_steps=2, optim_args="recluster_interval=1")
    trainer.train()
    names = {param: name for name, param in model.named_parameters()}
    decayed, others = [{names[param] for param in group["params"]} for group in inner(trainer).param_groups]
    assert [group["weight_decay"] for group in inner(trainer).param_groups] == [0.1, 0.0]
    assert all("norm" in name for name in others) and not any("norm" in name for name in decayed)
    assert "model.embed_tokens.weight" not in decayed | others
    assert {layer.name for layer in inner(trainer).grouping_report.layers} == decayed - {"lm_head.weight"}


def test_target_modules(tmp_path):
    trainer = make(tmp_path, max_steps=1, optim_args="recluster_interval=1", optim_target_modules="q_proj,v_proj")
    trainer.train()
    layers = [layer.name for layer in inner(trainer).grouping_report.layers]
    assert layers == [f"model.layers.{i}.self_attn.{name}.weight" for i in (0, 1) for name in ("q_proj", "v_proj")]
    with pytest.raises(ValueError, match=r"'q_porj'.*matches no module.*'q_proj'"):
        make(tmp_path, max_steps=1, optim_target_modules=["q_porj"]).train()


def test_one_cluster_of_the_papers_setting_is_adamw(tmp_path):
    losses = []
    for optim, optim_args in (("sgg_adamw", "preset=paper,n_clusters=1"), ("adamw_torch", None)):
        trainer = make(tmp_path, max_steps=4, optim=optim, optim_args=optim_args, learning_rate=1e-2)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class Tracker(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_our_callback_comes_first_and_once(tmp_path):
    tracker = Tracker()
    trainer = make(tmp_path, {"callbacks": [tracker]}, max_steps=2, optim_args="recluster_interval=2")
    callbacks = trainer.callback_handler.callbacks
    assert [isinstance(callback, ScaleCallback) for callback in callbacks] == [True] + [False] * (len(callbacks) - 1)
    trainer.train()
    assert ["sgg/scale_mean" in logs for logs in tracker.seen] == [False, True, False]


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    extra = {"logging_dir": str(tmp_path / "logs")} if "logging_dir" in TrainingArguments.__dataclass_fields__ else {}
    make(
        tmp_path, max_steps=2, optim_args="recluster_interval=1,n_clusters=2", report_to=["tensorboard"], **extra
    ).train()
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    for name in ("scale_mean", "scale_min", "scale_max", "scale_cluster_0", "scale_cluster_1", "waiting_layers"):
        assert [event.step for event in events.Scalars(f"train/sgg/{name}")] == [1, 2]


def test_an_optimizer_made_by_the_user(tmp_path):
    model = tiny.model()
    optimizer = SGGAdamW(model.parameters(), lr=1e-3, recluster_interval=0.5, total_steps="deferred", module=model)
    trainer = make(tmp_path, {"optimizers": (optimizer, None)}, model=model, optim="adamw_torch", max_steps=4)
    trainer.train()
    assert sgg_steps(trainer) == [2, 4]


def test_other_optimizers_log_nothing_of_ours(tmp_path):
    trainer = make(tmp_path, optim="adamw_torch", max_steps=2)
    trainer.train()
    assert not any(key.startswith("sgg/") for entry in trainer.state.log_history for key in entry)


def test_hyper_parameter_search(tmp_path):
    trainer = make(tmp_path, {"model_init": tiny.model}, max_steps=2)
    trainer.eval_dataset = trainer.train_dataset
    groups = []

    def objective(metrics):
        groups.append(inner(trainer).param_groups[0])
        return metrics["eval_loss"]

    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
            "optim_args": trial.suggest_categorical("optim_args", ["n_clusters=2", "n_clusters=4"]),
        },
        compute_objective=objective,
        n_trials=2,
        backend="optuna",
    )
    assert best.run_id in ("0", "1")
    assert len(groups) == 2 and all(group["n_clusters"] in (2, 4) for group in groups)
    assert groups[0]["initial_lr"] != groups[1]["initial_lr"]


@pytest.mark.parametrize(("given", "factor"), [("embedding_lr_factor=4,", 4), ("", 16), ("preset=paper,", 1)])
def test_the_embedding_has_its_rate_without_a_param_group_of_its_own(tmp_path, given, factor):
    trainer = make(tmp_path, max_steps=1, learning_rate=1e-3, weight_decay=0.0, optim_args=f"{given}n_clusters=1")
    weights = trainer.model.get_input_embeddings().weight, trainer.model.get_output_embeddings().weight
    before = [weight.detach().clone() for weight in weights]
    trainer.train()
    assert len(inner(trainer).param_groups) == 2
    assert {group["embedding_lr_factor"] for group in inner(trainer).param_groups} == {factor}
    # Adam's first step is the sign of the gradient.
    moved = [(weight - old).abs().max().item() for weight, old in zip(weights, before, strict=True)]
    assert moved == pytest.approx([factor * 1e-3, 1e-3], rel=1e-3)
