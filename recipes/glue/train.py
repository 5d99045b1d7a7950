"""Fine-tune RoBERTa-base on GLUE, whole or with LoRA: Table 5 of the SGG paper with the settings of its Table A3.

    python recipes/glue/train.py --config recipes/glue/full.yaml --tasks mrpc rte
    torchrun --nproc_per_node 2 recipes/glue/train.py --config recipes/glue/lora_r4.yaml
    python recipes/glue/train.py --config recipes/glue/full.yaml --smoke            # seconds, no network

Any field of TrainingArguments is an option, on the command line or in the YAML file.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import glue_metrics
import glue_smoke
import numpy as np
from datasets import load_dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed
from trl import ModelConfig, TrlParser, get_peft_config

import gradscale  # noqa: F401  # makes --optim sgg_adamw known where gradscale's import hook is switched off


@dataclass(frozen=True)
class Task:
    """What the rows of a task are made of. `classes` is 1 for a score; the first metric enters the average."""

    columns: tuple[str, ...]
    classes: int
    metrics: tuple[Callable, ...]
    splits: tuple[str, ...] = ("validation",)


_accuracy, _f1 = glue_metrics.accuracy, glue_metrics.f1
TASKS = {
    "cola": Task(("sentence",), 2, (glue_metrics.matthews, _accuracy)),
    "stsb": Task(("sentence1", "sentence2"), 1, (glue_metrics.pearson, glue_metrics.spearman)),
    "mrpc": Task(("sentence1", "sentence2"), 2, (_accuracy, _f1)),
    "rte": Task(("sentence1", "sentence2"), 2, (_accuracy,)),
    "sst2": Task(("sentence",), 2, (_accuracy,)),
    "mnli": Task(("premise", "hypothesis"), 3, (_accuracy,), ("validation_matched", "validation_mismatched")),
    "qnli": Task(("question", "sentence"), 2, (_accuracy,)),
    "qqp": Task(("question1", "question2"), 2, (_accuracy, _f1)),
}


@dataclass
class GlueArguments(TrainingArguments):
    """Options of this script, beside those of the Trainer, PEFT and the model."""

    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": "tasks of GLUE, one after another"})
    task_settings: dict = field(
        default_factory=dict, metadata={"help": "in the YAML file: task, then option and value"}
    )
    learning_rate: float | None = field(default=None, metadata={"help": "in place of each task's own"})
    per_device_train_batch_size: int | None = field(default=None, metadata={"help": "in place of each task's own"})
    max_length: int = field(default=512, metadata={"help": "tokens of a row; what is longer is cut"})
    train_file: str | None = field(
        default=None, metadata={"help": "JSON Lines in place of the hub; {task} is filled in"}
    )
    eval_file: str | None = field(default=None, metadata={"help": "likewise, for evaluation"})
    smoke: bool = field(default=False, metadata={"help": "a tiny model and generated rows, on a CPU"})

    def __post_init__(self):
        """Raise ValueError on an unknown task, or a task without a learning rate or batch size."""
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"tasks={task}: not one of {', '.join(TASKS)}")
            for name in ("learning_rate", "per_device_train_batch_size"):
                if getattr(self, name) is None and name not in self.task_settings.get(task, {}):
                    raise ValueError(f"{name} of {task} is neither given nor in task_settings; take a --config")
        if (self.train_file is None) != (self.eval_file is None):
            raise ValueError("train_file and eval_file: give both, or neither for the data of the hub")
        # The Trainer's own checks want numbers. These stand in for what `of_task` fills in.
        given = self.learning_rate, self.per_device_train_batch_size
        self.learning_rate, self.per_device_train_batch_size = given[0] or 0.0, given[1] or 1
        super().__post_init__()
        self.learning_rate, self.per_device_train_batch_size = given

    def of_task(self, task):
        """These arguments for one task: its learning rate and batch size, its folder."""
        own = copy.copy(self)
        for name, value in self.task_settings.get(task, {}).items():
            if getattr(self, name) is None:
                setattr(own, name, type(getattr(TrainingArguments, name))(value))
        own.output_dir = str(Path(self.output_dir) / task)
        return own


def load(task, args, tokenizer):
    """Tokenized training rows, and those of each evaluation split by its name."""
    if args.train_file:
        files = {"train": args.train_file.format(task=task), "validation": args.eval_file.format(task=task)}
        data, splits = load_dataset("json", data_files=files), ("validation",)
    else:
        data, splits = load_dataset("nyu-mll/glue", task), TASKS[task].splits

    def tokens(rows):
        texts = [rows[column] for column in TASKS[task].columns]
        return tokenizer(*texts, truncation=True, max_length=args.max_length)

    # The splits for testing have no labels, and are not read.
    data = {split: data[split].map(tokens, batched=True) for split in ("train", *splits)}
    return data.pop("train"), data


def scores(task, prediction):
    """All metrics of a task by name, as the Trainer's `compute_metrics` wants them."""
    logits = prediction.predictions
    predicted = np.squeeze(logits, -1) if task.classes == 1 else np.argmax(logits, -1)
    return {metric.__name__: metric(predicted, prediction.label_ids) for metric in task.metrics}


def run(name, args, model_args):
    """Train one task; return its record: optimizer, metrics of the last and of the best epoch, losses."""
    task, args = TASKS[name], args.of_task(name)
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        num_labels=task.classes,
        problem_type="regression" if task.classes == 1 else "single_label_classification",
    )
    adapter = get_peft_config(model_args)  # with lora_task_type SEQ_CLS, the head is trained whole beside the adapter
    model = get_peft_model(model, adapter) if adapter else model
    train, evals = load(name, args, tokenizer)
    trainer = Trainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=evals,
        processing_class=tokenizer,
        compute_metrics=lambda prediction: scores(task, prediction),
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    headline = f"eval_{next(iter(evals))}_{task.metrics[0].__name__}"
    log = trainer.state.log_history
    return {
        "optimizer": type(trainer.optimizer.optimizer).__name__,
        "metrics": metrics,
        "score": metrics[headline],
        "best_score": max(entry[headline] for entry in log if headline in entry),
        "losses": [entry["loss"] for entry in log if "loss" in entry],
    }


def main(argv=None):
    """Train all tasks that are named; write and return `results.json`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory() as folder:
        if "--smoke" in argv:  # in front, so that what the user says holds
            argv = [*glue_smoke.arguments(Path(folder), TASKS), *argv]
        args, model_args = TrlParser((GlueArguments, ModelConfig)).parse_args_and_config(argv)
        results = {name: run(name, args, model_args) for name in args.tasks}
    average = {
        kind: sum(result[kind] for result in results.values()) / len(results) for kind in ("score", "best_score")
    }
    results = {"tasks": results, "average": average}
    if args.should_save:
        Path(args.output_dir, "results.json").write_text(json.dumps(results, indent=1))
        for name, result in results["tasks"].items():
            print(f"{name}: {result['score']:.4f}, best epoch {result['best_score']:.4f}")
        print(f"average: {average['score']:.4f}, of best epochs {average['best_score']:.4f}")
    return results


if __name__ == "__main__":
    main()
