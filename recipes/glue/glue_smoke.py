"""A tiny RoBERTa and a few generated rows per task, written where the script looks for the real ones.

The answer can be learned from single words: rows of class 1 begin with `yes`, again and again.
"""

import json
import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import RobertaProcessing
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
WORDS = [*SPECIAL.values(), *"yes no maybe the a cat dog bird sees hears likes big small old red green blue .".split()]
ARGUMENTS = [
    *("--use_cpu", "--bf16", "false", "--max_steps", "20", "--logging_steps", "1", "--learning_rate", "5e-3"),
    *("--per_device_train_batch_size", "8", "--warmup_steps", "0", "--tasks", "mrpc", "stsb"),
    *("--optim_args", "preset=paper,grouping=kmeans,n_clusters=2,recluster_interval=0.25"),
    *("--eval_strategy", "no", "--output_dir", "runs/glue-smoke", "--report_to", "none"),
]


def arguments(folder, tasks):
    """Write model and data to `folder`; return the command line that takes them."""
    tokenizer().save_pretrained(folder / "base")
    model().save_pretrained(folder / "base")
    for name, task in tasks.items():
        for split, seed in (("train", 0), ("validation", 1)):
            lines = map(json.dumps, rows(task, 48, seed))
            (folder / f"{name}-{split}.jsonl").write_text("\n".join(lines) + "\n")
    files = ["--train_file", f"{folder}/{{task}}-train.jsonl", "--eval_file", f"{folder}/{{task}}-validation.jsonl"]
    return ["--model_name_or_path", str(folder / "base"), *files, *ARGUMENTS]


def tokenizer():
    """Words of a short list, in RoBERTa's frame of `<s>` and `</s>`."""
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    ends = [(token, WORDS.index(token)) for token in ("</s>", "<s>")]
    words.post_processor = RobertaProcessing(*ends)
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=512, **SPECIAL)


def model():
    """The model that a fine-tuning starts from: no head for the task yet."""
    torch.manual_seed(0)
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"initializer_range": 0.1, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return RobertaForMaskedLM(RobertaConfig(vocab_size=len(WORDS), max_position_embeddings=515, **config))


def rows(task, count, seed):
    """Rows with the columns of `task`."""
    rng = random.Random(seed)
    for _ in range(count):
        label = rng.randrange(task.classes) if task.classes > 1 else rng.choice([0.0, 2.5, 5.0])
        first = ["no", "yes", "maybe"][int(label) if task.classes > 1 else int(label / 2.5)]
        texts = [" ".join([first] * 4 + rng.choices(WORDS[8:], k=rng.randint(2, 6))) for _ in task.columns]
        yield {**dict(zip(task.columns, texts, strict=True)), "label": label}
