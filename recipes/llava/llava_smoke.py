"""A tiny LLaVA (CLIP's vision tower, a projector, Llama) and generated pictures in LLaVA's format.

The answer can be learned: it is the colour of the picture.
"""

import json
import random

import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
WORDS = [*SPECIAL, *"USER: ASSISTANT: What colour is this ? And again A picture .".split(), *COLOURS]
SIZE, PATCH = 16, 8  # pixels
ARGUMENTS = [
    *("--use_cpu", "--bf16", "false", "--dtype", "float32", "--max_steps", "20", "--logging_steps", "1"),
    *("--learning_rate", "1e-2", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"),
    *("--optim_args", "preset=paper,grouping=kmeans,n_clusters=2,recluster_interval=0.25"),
    *("--system_prompt", "A", "--max_new_tokens", "2"),
    *("--output_dir", "runs/llava-smoke", "--report_to", "none"),
]


def arguments(folder):
    """Write model, pictures and questions to `folder`; return the command line that takes them."""
    processor().save_pretrained(folder / "base")
    model().save_pretrained(folder / "base")
    (folder / "images").mkdir()
    for split, seed in (("train", 0), ("eval", 1)):
        (folder / f"{split}.json").write_text(json.dumps(list(rows(folder / "images", split, 24, seed))))
    files = ["--train_file", str(folder / "train.json"), "--eval_file", str(folder / "eval.json")]
    return ["--model_name_or_path", str(folder / "base"), *files, "--image_folder", str(folder / "images"), *ARGUMENTS]


def processor():
    """A token for each word, and pictures of SIZE x SIZE pixels cut into patches of PATCH x PATCH."""
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, "<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    special = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=["<image>"], **special)
    size = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    images = {"patch_size": PATCH, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    return LlavaProcessor(CLIPImageProcessorPil(**size), tokenizer, **images)


def model():
    """The model that training starts from."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=SIZE, patch_size=PATCH, **sizes)
    text = LlamaConfig(vocab_size=len(WORDS), bos_token_id=1, eos_token_id=2, pad_token_id=3, **sizes)
    text.initializer_range = 0.1
    image = {"image_token_id": WORDS.index("<image>"), "image_seq_length": (SIZE // PATCH) ** 2}
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **image))


def rows(folder, split, count, seed):
    """Conversations about one picture each, every sixth about none; pictures are written to `folder`."""
    rng = random.Random(seed)
    for index in range(count):
        name, colour = rng.choice(list(COLOURS.items()))
        row = {"id": f"{split}-{index}"}
        if index % 6 == 5:
            turns = [("human", "What is this ?"), ("gpt", "A picture .")]
        else:
            row["image"] = f"{split}-{index}.png"
            Image.new("RGB", (SIZE, SIZE + 4 * (index % 3)), colour).save(folder / row["image"])
            turns = [
                ("human", "<image>\nWhat colour is this ?"),
                ("gpt", name),
                ("human", "And again ?"),
                ("gpt", name),
            ]
        yield {**row, "conversations": [{"from": who, "value": text} for who, text in turns]}
