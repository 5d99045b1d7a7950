"""Causal language modelling in the manner of transformers' example run_clm.py."""

import json
import os
import sys

import tiny
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments


def main():
    parser = HfArgumentParser(TrainingArguments)
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        (args,) = parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    elif len(sys.argv) == 2 and sys.argv[1].endswith(".yaml"):
        (args,) = parser.parse_yaml_file(os.path.abspath(sys.argv[1]))
    else:
        (args,) = parser.parse_args_into_dataclasses()

    tokenizer = tiny.tokenizer()
    rows = [tokenizer(text)["input_ids"] for text in tiny.sentences(64)]
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model=tiny.model(), args=args, train_dataset=data)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        result = {"optimizer": type(trainer.optimizer.optimizer).__name__, "world": args.world_size}
        if trainer.is_deepspeed_enabled:
            names = ("gradient_accumulation_steps", "gradient_clipping")
            result["engine"] = {name: getattr(trainer.deepspeed, name)() for name in names}
        print("RESULT", json.dumps(result))
        trainer.state.save_to_json(os.path.join(args.output_dir, "trainer_state.json"))
    if torch.distributed.is_initialized():
        # gloo's threads drop the tensors of the last gather some time after it has returned. If that falls into the
        # shutdown of the interpreter, they cannot get the GIL and abort a rank that has finished: leave without one.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
