"""Asking `gradscale doctor`, and the files that it is asked about."""

import json

import yaml

from gradscale.cli.doctor import main
from tests.cli.cases_doctor import RANKS

# No size is a multiple of what engines pad or align to.
TINY = {
    "model_type": "llama",
    "hidden_size": 6,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 97,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
# The LLaMA of 1.34 billion parameters in docs/engines.md.
BILLION = {
    **TINY,
    "hidden_size": 2048,
    "intermediate_size": 5461,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


def write(folder, name, content):
    path = folder / name
    if not isinstance(content, str):
        content = json.dumps(content) if name.endswith(".json") else yaml.safe_dump(content)
    path.write_text(content)
    return path


def ask(capsys, *options, code=0):
    """What `gradscale doctor --json` prints."""
    capsys.readouterr()
    assert main([*map(str, options), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *options):
    """The message of exit status 2, at which nothing is printed to standard output."""
    capsys.readouterr()
    assert main([*map(str, options)]) == 2
    out, err = capsys.readouterr()
    assert not out
    return err


def accelerate(kind, processes=RANKS, **more):
    return {"distributed_type": kind, "num_processes": processes, "mixed_precision": "no", **more}


def fsdp(version, processes=RANKS, more=None, **settings):
    settings = {"version": version, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", **settings}
    config = {f"fsdp_{name}": value for name, value in settings.items()}
    return accelerate("FSDP", processes, fsdp_config=config, **(more or {}))


def zero(stage, more=None, **settings):
    return {"zero_optimization": {"stage": stage, **settings}, **(more or {})}


def options_of(folder, config):
    """The options that name an engine: an accelerate configuration, or a DeepSpeed one for 4 ranks."""
    if "zero_optimization" in config:
        return ["--deepspeed", write(folder, "ds.json", config), "--num_processes", RANKS]
    return ["--accelerate_config", write(folder, "accelerate.yaml", config)]
