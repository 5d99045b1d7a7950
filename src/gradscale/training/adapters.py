"""Adapters on frozen models: the keys `lora` and `quantization`, checked early and handed to PEFT and bitsandbytes."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from gradscale.data.cache import cached_folder
from gradscale.options import nearest
from gradscale.training.arguments import TrainArguments
from gradscale.training.errors import ConfigError
from gradscale.training.model import build_model, load_pretrained
from gradscale.training.output_folder import BASE


def check_adapter_keys(arguments: TrainArguments) -> None:
    """Check `lora` and `quantization` as far as that goes without a model.

    Raises:
        ConfigError: a library is missing, an entry does not exist, or a value is refused.
    """
    if arguments.lora is not None:
        _require("peft", "lora", "gradscale[peft]")
        lora_config(arguments.lora)
    if arguments.quantization is not None:
        _require("bitsandbytes", "quantization", "gradscale[bnb]")
        quantization_config(arguments.quantization)


def lora_config(values: Mapping[str, Any]) -> Any:
    """Return PEFT's `LoraConfig` of the mapping, for causal language models.

    Raises:
        ConfigError: an entry does not exist, or its value is refused.
    """
    from peft import LoraConfig

    _check_names("lora", values, {*inspect.signature(LoraConfig).parameters} - {"task_type", "peft_type"})
    for name, right, expected in _LORA_VALUES:
        if name in values and not right(values[name]):
            raise ConfigError(f"lora: {name}={values[name]!r} is not allowed: expected {expected}")
    return _made("lora", lambda: LoraConfig(**{**values, "task_type": "CAUSAL_LM"}))


def quantization_config(values: Mapping[str, Any]) -> Any:
    """Return the `BitsAndBytesConfig` of the mapping.

    Raises:
        ConfigError: an entry does not exist, its value is refused, or neither 4 nor 8 bits are asked for.
    """
    from transformers import BitsAndBytesConfig

    known = {name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"}
    _check_names("quantization", values, known)
    if not (values.get("load_in_4bit") or values.get("load_in_8bit")):
        raise ConfigError("quantization: set one of load_in_4bit, load_in_8bit to true")
    return _made("quantization", lambda: BitsAndBytesConfig(**values))


def build_adapted_model(
    arguments: TrainArguments, tokenizer: Any, trainer_arguments: Any, *, folder: Path, checkpoint: Path | None
) -> Any:
    """Return the model of `arguments` frozen, quantized where that is asked for, with a new adapter on it.

    A model with random weights is written to `folder/base`: no seed brings it back on another machine, and without it
    the adapter is of no use. A run that continues from a checkpoint takes the one that was written then.

    Args:
        arguments: the model, `lora` and `quantization`.
        tokenizer: for the sizes of a model with random weights.
        trainer_arguments: a `TrainingArguments`; its seed is that of all weights.
        folder: of the run.
        checkpoint: where the run continues, or None.

    Raises:
        ConfigError: the model cannot be loaded or made, or the adapter does not fit it.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    model = _frozen_model(arguments, tokenizer, trainer_arguments, folder=folder, checkpoint=checkpoint)
    config = lora_config(arguments.lora or {})
    checkpointing = bool(trainer_arguments.gradient_checkpointing)
    if arguments.quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    elif checkpointing:
        # Nothing that is frozen asks for gradients of its inputs, which checkpointed blocks need to have any.
        model.enable_input_require_grads()
    set_seed(trainer_arguments.seed)  # the adapter is the same, whether its base was made or loaded
    try:
        return _made("lora", lambda: get_peft_model(model, config))
    except ConfigError:
        if checkpoint is None and trainer_arguments.process_index == 0:
            discard_base(folder)
        raise


def discard_base(folder: Path) -> None:
    """Take away what `build_adapted_model` has written into `folder`."""
    shutil.rmtree(folder / BASE, ignore_errors=True)


def _frozen_model(
    arguments: TrainArguments, tokenizer: Any, trainer_arguments: Any, *, folder: Path, checkpoint: Path | None
) -> Any:
    """Return the model below the adapter; `name_or_path` says where it can be found again."""
    more: dict[str, Any] = {}
    if arguments.quantization is not None:
        more = {
            "quantization_config": quantization_config(arguments.quantization),
            "device_map": {"": trainer_arguments.device},  # whole, on this process's device
        }
    if arguments.model_config is None:
        return load_pretrained(arguments, tokenizer, **more)
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        raise ConfigError("lora with model_config is not possible under ZeRO 3, which has no whole model to keep")
    earlier = folder if checkpoint is None else checkpoint.parent
    with trainer_arguments.main_process_first(local=True, desc="the frozen model"):
        path = cached_folder("", BASE, lambda new: build_model(arguments, tokenizer).save_pretrained(new), root=earlier)
    return load_pretrained(arguments, tokenizer, path=path.resolve(), **more)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return value is None or isinstance(value, str) or isinstance(value, list) and all(isinstance(v, str) for v in value)


# PEFT takes these as they come, and fails over them late or never.
_LORA_VALUES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("r", _is_count, "an integer of at least 1"),
    ("lora_alpha", lambda value: _is_number(value) and value > 0, "a number above 0"),
    ("lora_dropout", lambda value: _is_number(value) and 0 <= value < 1, "a number in [0, 1)"),
    ("target_modules", _is_names, "a list of module names, or text"),
    ("modules_to_save", lambda value: _is_names(value) and not isinstance(value, str), "a list of module names"),
    ("use_dora", lambda value: isinstance(value, bool), "true or false"),
    ("use_rslora", lambda value: isinstance(value, bool), "true or false"),
)


def _require(module: str, key: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{key} needs {module}: pip install '{extra}'")


def _check_names(key: str, values: Mapping[str, Any], known: Collection[str]) -> None:
    for name in values:
        if name not in known:
            raise ConfigError(f"{key}: there is no {name!r}{nearest(str(name), known)}")


def _made(key: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{key}: {lines[0]}") from error
