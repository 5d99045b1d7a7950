"""The model of a configuration, without its weights: every parameter is on the meta device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from gradscale.doctor.files import read_mapping
from gradscale.options import nearest
from gradscale.training.errors import ConfigError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def build_model(name: str, dtype: str) -> nn.Module:
    """Return the model that a configuration describes, of the class that it names, else with a language model's head.

    Args:
        name: a `config.json`, the folder of a model, or its name on the hub (which needs a network, or its cache).
        dtype: a name of `DTYPES`, or "auto" for what the configuration says (float32 if it says nothing).

    Raises:
        ConfigError: there is no such configuration, or no such kind of model.
    """
    config = _config(name)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model: nn.Module = _load(lambda: _from_config(config), f"--model={name!r}: no model")
    named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    chosen = DTYPES[dtype] if dtype != "auto" else getattr(torch, named) if isinstance(named, str) else named
    return model.to(chosen)


def add_adapters(
    model: nn.Module, *, lora_r: int | None, lora_target_modules: list[str] | None, peft_config: str | None
) -> nn.Module:
    """Return the model with PEFT's adapters, everything else frozen; as it is where none are asked for.

    Raises:
        ConfigError: PEFT is missing, or refuses what is asked for.
    """
    if lora_r is None and peft_config is None:
        return model
    try:
        import peft
    except ImportError:
        raise ConfigError("adapters need peft: pip install 'gradscale[peft]'") from None
    option = f"--lora_r={lora_r}" if peft_config is None else f"--peft_config={peft_config!r}"

    def adapted() -> nn.Module:
        if peft_config is not None:
            file = Path(peft_config).expanduser()
            values = read_mapping(str(file / "adapter_config.json" if file.is_dir() else file), "--peft_config")
            settings = peft.get_peft_config({**values, "inference_mode": False})
        else:
            # One value may be "all-linear" or a regular expression, which PEFT takes as text.
            targets = (
                lora_target_modules[0] if lora_target_modules and len(lora_target_modules) == 1 else lora_target_modules
            )
            settings = peft.LoraConfig(r=lora_r, target_modules=targets)
        return cast(nn.Module, peft.get_peft_model(model, settings))

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        changed: nn.Module = _load(adapted, option)
    return changed


def _config(name: str) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise ConfigError(f"--model={name!r} has no config.json")
    elif path.suffix != ".json" and not name.startswith((".", "/", "~")) and name.count("/") <= 1:
        if path.exists():
            raise ConfigError(f"--model={name!r} is a file, expected a config.json, a folder or a name on the hub")
        return _load(lambda: AutoConfig.from_pretrained(name), f"--model={name!r}: no configuration")
    values = read_mapping(str(path), "--model")
    kind = values.pop("model_type", None)
    if not isinstance(kind, str):
        raise ConfigError(f'--model: {path} has no "model_type", for example "llama"')
    if kind not in CONFIG_MAPPING_NAMES:
        raise ConfigError(f"--model: {path}: unknown model_type {kind!r}{nearest(kind, CONFIG_MAPPING_NAMES)}")
    return _load(lambda: AutoConfig.for_model(kind, **values), f"--model: {path}")


def _from_config(config: Any) -> nn.Module:
    import transformers
    from transformers import AutoModel, AutoModelForCausalLM

    for name in getattr(config, "architectures", None) or ():
        kind = getattr(transformers, str(name), None)
        if kind is not None:
            return cast(nn.Module, kind(config))
    heads = AutoModelForCausalLM._model_mapping
    return cast(nn.Module, (AutoModelForCausalLM if type(config) in heads else AutoModel).from_config(config))


def _load(load: Callable[[], Any], what: str) -> Any:
    """Return `load()`, with the many errors of configurations and of the hub as one short message."""
    try:
        return load()
    except ConfigError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ConfigError(f"{what}: {' '.join(lines[:2])}") from error
