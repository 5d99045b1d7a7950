"""Train an adapter of LLaMA-7B on commonsense_170k, and evaluate it on the eight sets: Table 6 and A4 of the SGG paper.

    python recipes/commonsense/train.py --config recipes/commonsense/lora.yaml \
        --train_file commonsense_170k.json --eval_dir dataset
    torchrun --nproc_per_node 2 recipes/commonsense/train.py --config recipes/commonsense/dora.yaml ...
    python recipes/commonsense/train.py --config recipes/commonsense/lora.yaml --smoke      # seconds, no network

The data are those of LLM-Adapters (github.com/AGI-Edgerunners/LLM-Adapters): `ft-training_set/commonsense_170k.json`,
and the folder `dataset` with a `test.json` in a folder for each set. Evaluation runs on one process, or under DDP.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import answers
import commonsense_smoke
import torch
from datasets import load_dataset
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import ModelConfig, TrlParser, get_peft_config

import gradscale  # noqa: F401  # makes --optim sgg_adamw known where gradscale's import hook is switched off

SETS = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")


@dataclass
class CommonsenseArguments:
    """Options of this script, beside those of the Trainer, PEFT and the model."""

    train_file: str = field(metadata={"help": "JSON or JSON Lines with the columns instruction and output"})
    eval_dir: str | None = field(default=None, metadata={"help": "folder with NAME/test.json for each of --eval_sets"})
    eval_sets: list[str] = field(default_factory=lambda: list(SETS), metadata={"help": "names of the sets"})
    eval_by: Literal["generation", "likelihood"] = field(
        default="generation", metadata={"help": "the first candidate in what the model writes, or the likeliest"}
    )
    eval_batch_size: int = field(default=8, metadata={"help": "questions at once, on each process"})
    max_eval_rows: int | None = field(default=None, metadata={"help": "questions of each set; default: all"})
    max_new_tokens: int = field(default=32, metadata={"help": "length of a written answer"})
    num_beams: int = field(default=4, metadata={"help": "beams of a written answer"})
    max_length: int = field(default=256, metadata={"help": "tokens of a training row; what is longer is cut"})
    smoke: bool = field(default=False, metadata={"help": "a tiny model and generated rows, on a CPU"})

    def __post_init__(self):
        """Raise ValueError on a file or folder that is not there, before a model is loaded."""
        named = [Path(self.train_file)]
        named += [Path(self.eval_dir, name, "test.json") for name in self.eval_sets] if self.eval_dir else []
        for path in named:
            if not path.is_file():
                raise ValueError(f"no such file: {path}")


def prompt(instruction):
    """The text before an answer. The answers of the data follow a line of their own, as in Alpaca."""
    return f"Answer the question below.\n\n### Instruction:\n{instruction}\n\n### Response:\n"


def tokenized(script, tokenizer):
    """Training rows: question and answer in one text, both learned, as LLM-Adapters does."""

    def tokens(row):
        text = prompt(row["instruction"]) + row["output"]
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id][: script.max_length]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids}

    data = load_dataset("json", data_files=script.train_file, split="train")
    return data.map(tokens, remove_columns=data.column_names)


def evaluate(name, script, model, tokenizer, accelerator):
    """Accuracy on one set. Each process answers its share of the questions."""
    rows = json.loads(Path(script.eval_dir, name, "test.json").read_text())[: script.max_eval_rows]
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    right = 0
    for start in range(0, len(mine), script.eval_batch_size):
        batch = mine[start : start + script.eval_batch_size]
        prompts = [prompt(row["instruction"]) for row in batch]
        choices = [answers.candidates(row["instruction"]) for row in batch]
        if script.eval_by == "generation":
            limits = script.max_new_tokens, script.num_beams
            given = answers.by_generation(model, tokenizer, prompts, choices, *limits)
        else:
            given = answers.by_likelihood(model, tokenizer, prompts, choices, "the correct answer is {}".format)
        right += sum(answer == row["answer"] for answer, row in zip(given, batch, strict=True))
    counts = accelerator.reduce(torch.tensor([right, len(mine)], device=accelerator.device))
    return counts[0].item() / counts[1].item()


def main(argv=None):
    """Train, evaluate, save the adapter; write and return `results.json`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory() as folder:
        if "--smoke" in argv:  # in front, so that what the user says holds
            argv = [*commonsense_smoke.arguments(Path(folder), prompt), *argv]
        parser = TrlParser((CommonsenseArguments, TrainingArguments, ModelConfig))
        return run(*parser.parse_args_and_config(argv))


def run(script, args, model_args):
    """Train and evaluate with parsed arguments."""
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, dtype=model_args.dtype)
    adapter = get_peft_config(model_args)
    model = get_peft_model(model, adapter) if adapter else model
    trainer = Trainer(
        model,
        args,
        train_dataset=tokenized(script, tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    model.eval()
    accuracy = {}
    for name in script.eval_sets if script.eval_dir else ():
        accuracy[name] = evaluate(name, script, model, tokenizer, trainer.accelerator)
    results = {
        "optimizer": type(trainer.optimizer.optimizer).__name__,
        "accuracy": accuracy,
        "average": sum(accuracy.values()) / len(accuracy) if accuracy else None,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    if args.should_save:
        Path(args.output_dir, "results.json").write_text(json.dumps(results, indent=1))
        print("\n".join(f"{name}: {value:.4f}" for name, value in accuracy.items()))
        print(f"average: {results['average']}")
    return results


if __name__ == "__main__":
    main()
