"""A tiny Llama, tokenizer and data set, made in memory. Knows nothing of gradscale."""

import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"the a red green blue cat dog bird sees hears likes big small old .".split()]


def tokenizer():
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def sentences(count):
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS[4:], k=12)) for _ in range(count)]


def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def loaded_again(trained, folder):
    """What of an adapter is in a new model that loads it from where it was saved, and whether training moved it."""
    from peft import PeftModel

    adapter = {name: value for name, value in trained.state_dict().items() if "lora_" in name}
    found = PeftModel.from_pretrained(model(), folder).state_dict()
    return {
        "tensors": len(adapter),
        "same": all(found[name].equal(value) for name, value in adapter.items()),
        "trained": all(bool(value.any()) for value in adapter.values()),
    }
