"""Trains a small Llama with every optimizer that another library provides, or resumes all of these runs.

named_runs.py FOLDER            train for 6 steps, with a checkpoint after 3
named_runs.py FOLDER --resume   go on from the checkpoints
"""

import sys
from pathlib import Path

import torch
from tiny import WORDS
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

ARGS = {
    "sgg_adafactor": "beta1=0.9",
    "sgg_came": "betas=[0.9,0.99,0.999]",
    "sgg_apollo_adamw": "rank=4,update_proj_gap=2",
    "sgg_muon": "adamw_lr=0.001",
    "sgg_adamw_8bit": "min_8bit_size=4096",
    "sgg_paged_adamw_8bit": None,
    "sgg_adamw_torch_8bit": "kernel=eager,block_size=128",
    "sgg_adamw_torch_4bit": "kernel=eager",
}


def trainer(name, folder):
    args = TrainingArguments(
        output_dir=str(folder),
        optim=name,
        optim_args=ARGS[name],
        learning_rate=1e-2,
        weight_decay=0.1,
        max_steps=6,
        save_steps=3,
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(4, len(WORDS), (10,), generator=generator) for _ in range(16)]
    return Trainer(model=model, args=args, train_dataset=[{"input_ids": ids, "labels": ids} for ids in tokens])


def main(folder, resume):
    for name in ARGS:
        run = trainer(name, folder / ("resumed" if resume else "whole") / name)
        run.train(resume_from_checkpoint=str(folder / "whole" / name / "checkpoint-3") if resume else None)
        kept = {key: value.detach().clone() for key, value in run.model.named_parameters()}
        logged = [entry["step"] for entry in run.state.log_history if "sgg/scale_mean" in entry]
        states = run.optimizer.optimizer.state_dict()["state"].values()
        scales = torch.cat([state["sgg_scales"] for state in states if "sgg_scales" in state])
        target = folder / f"{name}-{'resumed' if resume else 'whole'}.pt"
        torch.save({"weights": kept, "logged": logged, "scales": scales}, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--resume" in sys.argv)
