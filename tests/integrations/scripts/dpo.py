"""Preference optimization in the manner of TRL's dpo.py."""

import json
import os

import tiny
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, TrlParser


def main(training_args):
    texts = tiny.sentences(48)
    data = Dataset.from_dict({"prompt": texts[:16], "chosen": texts[16:32], "rejected": texts[32:]})
    trainer = DPOTrainer(
        model=tiny.model(),
        ref_model=tiny.model(),
        args=training_args,
        train_dataset=data,
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    trainer.state.save_to_json(os.path.join(training_args.output_dir, "trainer_state.json"))
    print("RESULT", json.dumps({"optimizer": type(trainer.optimizer.optimizer).__name__}))


if __name__ == "__main__":
    parser = TrlParser(DPOConfig)
    (training_args,) = parser.parse_args_and_config()
    main(training_args)
