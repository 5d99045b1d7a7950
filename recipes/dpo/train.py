"""Align Qwen2.5-0.5B with preferences by DPO, whole or with LoRA: Table 7 of the SGG paper.

    python recipes/dpo/train.py --config recipes/dpo/full.yaml
    accelerate launch recipes/dpo/train.py --config recipes/dpo/lora.yaml
    python recipes/dpo/train.py --config recipes/dpo/full.yaml --smoke              # seconds, no network

Any field of TRL's DPOConfig and ModelConfig is an option, on the command line or in the YAML file.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import dpo_smoke
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, ModelConfig, TrlParser, get_peft_config

import gradscale  # noqa: F401  # makes --optim sgg_adamw known where gradscale's import hook is switched off


@dataclass
class PreferenceArguments:
    """Options of this script, beside those of TRL."""

    dataset_name: str = field(default="trl-lib/ultrafeedback_binarized", metadata={"help": "splits train and test"})
    train_file: str | None = field(default=None, metadata={"help": "JSON Lines in place of the data set of the hub"})
    eval_file: str | None = field(default=None, metadata={"help": "likewise, for evaluation"})
    smoke: bool = field(default=False, metadata={"help": "a tiny model and generated rows, on a CPU"})

    def __post_init__(self):
        """Raise ValueError if one file is given without the other."""
        if (self.train_file is None) != (self.eval_file is None):
            raise ValueError("train_file and eval_file: give both, or neither for the data of the hub")


def main(argv=None):
    """Train, evaluate, save; write and return `results.json`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory() as folder:
        if "--smoke" in argv:  # in front, so that what the user says holds
            argv = [*dpo_smoke.arguments(Path(folder)), *argv]
        return run(*TrlParser((PreferenceArguments, DPOConfig, ModelConfig)).parse_args_and_config(argv))


def run(script, args, model_args):
    """Train and evaluate with parsed arguments."""
    if script.train_file:
        data = load_dataset("json", data_files={"train": script.train_file, "test": script.eval_file})
    else:
        data = load_dataset(script.dataset_name)
    trainer = DPOTrainer(
        # Without an adapter, the trainer loads the model to compare with from the same name.
        model=AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, dtype=model_args.dtype),
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=AutoTokenizer.from_pretrained(model_args.model_name_or_path),
        peft_config=get_peft_config(model_args),
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    results = {
        "optimizer": type(trainer.optimizer.optimizer).__name__,
        "accuracy": metrics["eval_rewards/accuracies"],  # how often the better answer has the higher reward
        "metrics": metrics,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    if args.should_save:
        Path(args.output_dir, "results.json").write_text(json.dumps(results, indent=1))
        print(f"accuracy: {results['accuracy']:.4f}")
    return results


if __name__ == "__main__":
    main()
