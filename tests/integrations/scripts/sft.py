"""Supervised fine-tuning in the manner of TRL's sft.py."""

import json
import os

import tiny
from datasets import Dataset
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config


def main(training_args, model_args):
    data = Dataset.from_dict({"text": tiny.sentences(32)})
    trainer = SFTTrainer(
        model=tiny.model(),
        args=training_args,
        train_dataset=data,
        processing_class=tiny.tokenizer(),
        peft_config=get_peft_config(model_args),
    )
    trainer.train()
    trainer.state.save_to_json(os.path.join(training_args.output_dir, "trainer_state.json"))
    result = {"optimizer": type(trainer.optimizer.optimizer).__name__}
    if model_args.use_peft:
        trainer.save_model(training_args.output_dir)
        result["adapter"] = tiny.loaded_again(trainer.model, training_args.output_dir)
        result["state"] = len(trainer.optimizer.optimizer.state)
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    parser = TrlParser((SFTConfig, ModelConfig))
    training_args, model_args = parser.parse_args_and_config()
    main(training_args, model_args)
