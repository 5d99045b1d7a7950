"""Supervised fine-tuning in the manner of TRL's sft.py."""

import json
import os

import tiny
from datasets import Dataset
from trl import SFTConfig, SFTTrainer, TrlParser


def main(training_args):
    data = Dataset.from_dict({"text": tiny.sentences(32)})
    trainer = SFTTrainer(model=tiny.model(), args=training_args, train_dataset=data, processing_class=tiny.tokenizer())
    trainer.train()
    trainer.state.save_to_json(os.path.join(training_args.output_dir, "trainer_state.json"))
    print("RESULT", json.dumps({"optimizer": type(trainer.optimizer.optimizer).__name__}))


if __name__ == "__main__":
    parser = TrlParser(SFTConfig)
    (training_args,) = parser.parse_args_and_config()
    main(training_args)
