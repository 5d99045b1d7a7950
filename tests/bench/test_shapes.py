"""The workloads are the models that they are named after: numbers are quoted by these names."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from gradscale.bench.shapes import WORKLOADS, llama

# As the papers and model cards give them: hidden, intermediate, blocks.
GALORE = {
    "llama-60m": (512, 1376, 8),
    "llama-130m": (768, 2048, 12),
    "llama-350m": (1024, 2736, 24),
    "llama-1b": (2048, 5461, 24),
}


def model(hidden, intermediate, blocks, **more):
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        **{"num_attention_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False, **more},
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def trained(module):
    return sorted(tuple(param.shape) for param in module.parameters() if param.requires_grad)


@pytest.mark.parametrize("name", GALORE)
def test_a_llama_has_the_tensors_that_transformers_gives_it(name):
    assert sorted(WORKLOADS[name].shapes) == trained(model(*GALORE[name]))


def test_adapters_have_the_tensors_that_peft_gives_them():
    base = model(2048, 8192, 16, num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True)
    adapted = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert sorted(WORKLOADS["lora-1b"].shapes) == trained(adapted)


def test_grouped_queries_have_narrow_keys_and_values():
    assert sorted(llama(64, 96, 2, kv=16)) == trained(model(64, 96, 2, num_key_value_heads=2))


@pytest.mark.parametrize(
    ("name", "tensors", "parameters", "layers"),
    [("llama-60m", 75, 58_073_600, 58), ("llama-1b", 219, 1_339_082_752, 170), ("lora-1b", 224, 11_272_192, 224)],
)
def test_the_sizes_are_those_that_the_documentation_quotes(name, tensors, parameters, layers):
    workload = WORKLOADS[name]
    assert (workload.tensors, workload.parameters, workload.layers) == (tensors, parameters, layers)
