"""A tiny Qwen2 and generated preferences in the format of ultrafeedback_binarized: conversations that begin alike."""

import json
import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
WORDS = [
    *SPECIAL,
    *"user assistant good bad the a cat dog bird sees hears likes big small old red green blue .".split(),
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
ARGUMENTS = [
    *("--use_cpu", "--bf16", "false", "--dtype", "float32", "--max_steps", "12", "--logging_steps", "1"),
    *("--learning_rate", "1e-2", "--gradient_accumulation_steps", "1", "--per_device_train_batch_size", "8"),
    *("--optim_args", "preset=paper,grouping=kmeans,n_clusters=2,recluster_interval=0.25"),
    *("--eval_strategy", "no", "--output_dir", "runs/dpo-smoke", "--report_to", "none"),
]


def arguments(folder):
    """Write model and data to `folder`; return the command line that takes them."""
    tokenizer().save_pretrained(folder / "base")
    model().save_pretrained(folder / "base")
    for split, seed in (("train", 0), ("test", 1)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(32, seed)))
    files = ["--train_file", str(folder / "train.jsonl"), "--eval_file", str(folder / "test.jsonl")]
    return ["--model_name_or_path", str(folder / "base"), *files, *ARGUMENTS]


def tokenizer():
    """A token for each word, and the frame of Qwen's messages."""
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, "<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": SPECIAL[0], "eos_token": SPECIAL[2], "unk_token": SPECIAL[3]}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **special)


def model():
    """The model that training starts from."""
    torch.manual_seed(0)
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 1, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(WORDS), **config))


def rows(count, seed):
    """Preferences that can be learned: the better answer says `good`, the other `bad`."""
    rng = random.Random(seed)
    for _ in range(count):
        question = {"role": "user", "content": " ".join(rng.choices(WORDS[8:], k=5))}
        better, worse = (
            {"role": "assistant", "content": " ".join([word, *rng.choices(WORDS[8:], k=3)])} for word in ("good", "bad")
        )
        yield {"chosen": [question, better], "rejected": [question, worse], "score_chosen": 8.0, "score_rejected": 4.0}
