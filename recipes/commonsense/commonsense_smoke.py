"""A tiny Llama and generated questions, in the format and the folders of the real ones.

The answer can be learned: it is the candidate that the question names, again and again.
"""

import json
import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
CANDIDATES = {
    **{"boolq": ["true", "false"], "winogrande": ["option1", "option2"], "piqa": ["solution1", "solution2"]},
    **{"social_i_qa": [f"answer{n}" for n in (1, 2, 3)], "hellaswag": [f"ending{n}" for n in (1, 2, 3, 4)]},
    **{name: [f"answer{n}" for n in (1, 2, 3, 4)] for name in ("ARC-Easy", "ARC-Challenge", "openbookqa")},
}
ARGUMENTS = [
    *("--use_cpu", "--bf16", "false", "--dtype", "float32", "--max_steps", "60", "--logging_steps", "1"),
    *("--learning_rate", "2e-2", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"),
    *("--optim_args", "preset=paper,grouping=kmeans,n_clusters=2,recluster_interval=0.25"),
    *("--max_new_tokens", "8", "--warmup_steps", "0", "--output_dir", "runs/commonsense-smoke", "--report_to", "none"),
]


def arguments(folder, prompt):
    """Write model and data to `folder`; return the command line that takes them.

    `prompt` makes the text before an answer from an instruction.
    """
    train = [row for name in CANDIDATES for row in rows(name, 16, seed=0)]
    (folder / "train.json").write_text(json.dumps(train))
    for name in CANDIDATES:
        (folder / "eval" / name).mkdir(parents=True)
        (folder / "eval" / name / "test.json").write_text(json.dumps(list(rows(name, 4, seed=1))))
    words = sorted({word for row in train for word in (prompt(row["instruction"]) + row["output"]).split()})
    tokenizer(words).save_pretrained(folder / "base")
    model(len(tokenizer(words))).save_pretrained(folder / "base")
    files = ["--train_file", str(folder / "train.json"), "--eval_dir", str(folder / "eval")]
    return ["--model_name_or_path", str(folder / "base"), *files, *ARGUMENTS]


def tokenizer(words):
    """A token for each word."""
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate([*SPECIAL.values(), *words])}, "<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def model(size):
    """The model that a fine-tuning starts from."""
    torch.manual_seed(0)
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"initializer_range": 0.2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, bos_token_id=1, eos_token_id=2, **config))


def rows(name, count, seed):
    """Questions as LLM-Adapters has them: instruction, input, output, answer."""
    rng = random.Random(f"{name} {seed}")
    for _ in range(count):
        answer = rng.choice(CANDIDATES[name])
        question = f"Please choose {' '.join([answer] * 6)} for {rng.choice(['cats', 'dogs', 'birds'])} ."
        instruction = f"{question}\n\nAnswer format: {'/'.join(CANDIDATES[name])}"
        yield {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}
