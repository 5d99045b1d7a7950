"""Fine-tune LLaVA on conversations about pictures, the vision tower frozen: Table 8 of the SGG paper.

    python recipes/llava/train.py --config recipes/llava/lora.yaml \
        --train_file llava_v1_5_mix665k.json --image_folder playground/data
    torchrun --nproc_per_node 8 recipes/llava/train.py --config recipes/llava/full.yaml ...
    python recipes/llava/train.py --config recipes/llava/lora.yaml --smoke          # seconds, no network

Data are conversations in LLaVA's format, and a folder of pictures.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import conversations
import llava_smoke
import torch
from peft import get_peft_model
from transformers import AutoProcessor, LlavaForConditionalGeneration, Trainer, TrainingArguments, set_seed
from trl import ModelConfig, TrlParser, get_peft_config

import gradscale  # noqa: F401  # makes --optim sgg_adamw known where gradscale's import hook is switched off


@dataclass
class LlavaArguments:
    """Options of this script, beside those of the Trainer, PEFT and the model."""

    train_file: str = field(metadata={"help": "JSON or JSON Lines: conversations, and image where there is one"})
    image_folder: str = field(metadata={"help": "where the names in `image` are looked up"})
    eval_file: str | None = field(default=None, metadata={"help": "likewise; first answers are compared word for word"})
    trained: Literal["projector", "all"] = field(
        default="all", metadata={"help": "the projector alone, or the language model (whole, or its adapter) too"}
    )
    max_length: int = field(default=2048, metadata={"help": "tokens of a conversation; what is longer is cut"})
    max_new_tokens: int = field(default=32, metadata={"help": "length of a written answer"})
    system_prompt: str = field(default="", metadata={"help": "text before each conversation"})
    smoke: bool = field(default=False, metadata={"help": "a tiny model and generated pictures, on a CPU"})


def prepared(script, model_args):
    """The model, with what shall not be trained frozen."""
    model = LlavaForConditionalGeneration.from_pretrained(model_args.model_name_or_path, dtype=model_args.dtype)
    adapter = get_peft_config(model_args)
    if adapter and script.trained == "projector":
        raise ValueError("trained=projector with use_peft: the projector is trained whole; leave one of the two out")
    if adapter:
        # The adapter freezes everything else but for the projector, a copy of which is trained whole and saved.
        adapter.modules_to_save = ["multi_modal_projector"]
        model = get_peft_model(model, adapter)
    else:
        model.requires_grad_(script.trained == "all")
        model.model.vision_tower.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    for param in model.parameters():
        if param.requires_grad:  # in bfloat16, steps as small as these would be rounded away
            param.data = param.data.float()
    return model


@torch.no_grad()
def exact_matches(model, collator, rows, max_new_tokens, bf16):
    """Share of rows whose first answer is written word for word; pictures only."""
    rows = [row for row in rows if row.get("image")]
    hits = 0
    for row in rows:
        batch, answer = collator.question(row)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        text = collator.processor.tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        hits += text.strip() == answer.strip()
    return hits / len(rows)


def main(argv=None):
    """Train, evaluate, save; write and return `results.json`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory() as folder:
        if "--smoke" in argv:  # in front, so that what the user says holds
            argv = [*llava_smoke.arguments(Path(folder)), *argv]
        return run(*TrlParser((LlavaArguments, TrainingArguments, ModelConfig)).parse_args_and_config(argv))


def run(script, args, model_args):
    """Train and evaluate with parsed arguments."""
    args.remove_unused_columns = False  # the collator reads whole rows
    set_seed(args.seed)
    train = conversations.read(script.train_file)
    evaluation = conversations.read(script.eval_file) if script.eval_file else None
    processor = AutoProcessor.from_pretrained(model_args.model_name_or_path)
    collator = conversations.Collator(processor, script.image_folder, script.system_prompt, script.max_length)
    model = prepared(script, model_args)
    trainer = Trainer(
        model,
        args,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    results = {
        "optimizer": type(trainer.optimizer.optimizer).__name__,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    if evaluation:
        results["metrics"] = trainer.evaluate()
        model.eval()
        results["exact_match"] = exact_matches(model, collator, evaluation, script.max_new_tokens, args.bf16)
    if args.should_save:
        Path(args.output_dir, "results.json").write_text(json.dumps(results, indent=1))
        print({name: value for name, value in results.items() if name != "losses"})
    return results


if __name__ == "__main__":
    main()
