"""The tokenizer and the model of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradscale.bench.shapes import LLAMAS
from gradscale.data.source import Source
from gradscale.data.tokenizer import trained_tokenizer
from gradscale.options import nearest
from gradscale.training.arguments import TrainArguments
from gradscale.training.errors import ConfigError
from gradscale.training.yaml_file import parse_flow


def check_model_files(arguments: TrainArguments) -> None:
    """Check the local files that the model is to come from, before data are prepared.

    Raises:
        ConfigError: a path is missing or not what it has to be.
    """
    for name in ("model_name_or_path", "tokenizer_name_or_path"):
        value = getattr(arguments, name)
        if value is None:
            continue
        path = Path(value).expanduser()
        if path.is_dir():
            needed = ("config.json",) if name == "model_name_or_path" else ("tokenizer.json", "tokenizer_config.json")
            if not any((path / file).is_file() for file in needed):
                raise ConfigError(f"{name}={value!r} has no {' or '.join(needed)}")
        elif path.exists() or value.startswith((".", "/", "~")) or value.count("/") > 1:
            raise ConfigError(f"{name}={value!r} is no folder (and no hub id, which looks like 'organization/name')")
    if arguments.model_config is not None:
        _config_values(arguments.model_config)


def load_tokenizer(arguments: TrainArguments, source: Source) -> Any:
    """Return the tokenizer that is named, that of the model, or one trained on the training documents.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    name = arguments.tokenizer_name_or_path or arguments.model_name_or_path
    if name is None:
        return AutoTokenizer.from_pretrained(str(trained_tokenizer(source, arguments.vocab_size)))
    key = "tokenizer_name_or_path" if arguments.tokenizer_name_or_path else "model_name_or_path"
    return _load(lambda: AutoTokenizer.from_pretrained(_path(name)), f"{key}={name!r}: no tokenizer")


def build_model(arguments: TrainArguments, tokenizer: Any) -> Any:
    """Return the model to train, with random weights for a `model_config`; the caller seeds.

    Raises:
        ConfigError: it cannot be built or loaded, or does not fit the tokenizer or `block_size`.
    """
    from transformers import AutoModelForCausalLM

    if arguments.model_config is not None:
        config = _build_config(arguments.model_config, arguments.block_size, tokenizer)
        _check_sizes(config, arguments.block_size, tokenizer)  # before memory is filled with a model of no use
        return _load(lambda: AutoModelForCausalLM.from_config(config), "model_config: no model")
    return load_pretrained(arguments, tokenizer)


def load_pretrained(arguments: TrainArguments, tokenizer: Any, *, path: Path | None = None, **keywords: Any) -> Any:
    """Return the model of `model_name_or_path`, or of the folder `path`, in the type `dtype`.

    Args:
        arguments: where the model is, its `dtype`, and `block_size`.
        tokenizer: which has to fit it.
        path: local folder instead of `model_name_or_path`.
        keywords: further ones of `from_pretrained`.

    Raises:
        ConfigError: it cannot be loaded, or does not fit the tokenizer or `block_size`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    name = str(path) if path is not None else _path(arguments.model_name_or_path or "")
    what = f"model_name_or_path={str(path or arguments.model_name_or_path)!r}: no model"
    _check_sizes(_load(lambda: AutoConfig.from_pretrained(name), what), arguments.block_size, tokenizer)
    keywords[_dtype_keyword()] = arguments.dtype
    return _load(lambda: AutoModelForCausalLM.from_pretrained(name, **keywords), what)


def _check_sizes(config: Any, block_size: int, tokenizer: Any) -> None:
    rows = getattr(config, "vocab_size", None)
    if rows is not None and len(tokenizer) > rows:
        raise ConfigError(f"the tokenizer has {len(tokenizer)} tokens, the model's vocabulary only {rows}")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and block_size > positions:
        raise ConfigError(f"block_size={block_size} is more than the model's {positions} positions")


def _build_config(given: dict[str, Any] | str, block_size: int, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    values = dict(_config_values(given))
    model_type = values.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type).to_dict()
    except ValueError:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        hint = nearest(str(model_type), CONFIG_MAPPING_NAMES)
        raise ConfigError(f"model_config: unknown model_type {model_type!r}{hint}") from None
    if isinstance(given, dict):  # a file of another version may hold more; a mapping is written by hand
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"model_config: {model_type} has no {name}={value!r}{nearest(name, known)}")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    fill: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": block_size}
    fill = {name: value for name, value in fill.items() if name in known}
    values = {**fill, **ids, "pad_token_id": tokenizer.pad_token_id, **values}
    return _load(lambda: AutoConfig.for_model(model_type, **values), "model_config")


def _config_values(given: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(given, dict):
        values, origin = given, "model_config"
    elif given in LLAMAS:
        return LLAMAS[given].config()
    else:
        path = Path(given).expanduser()
        path = path / "config.json" if path.is_dir() else path
        origin = f"model_config={given!r}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            names = "" if "/" in given else f"{nearest(given, LLAMAS) or ';'} the sizes by name are {', '.join(LLAMAS)}"
            raise ConfigError(f"{origin}: there is no readable file {str(path)!r}{names}") from None
        try:
            values = json.loads(text) if path.suffix == ".json" else parse_flow(text)
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ConfigError(f"{origin} has no model_type, for example: model_type: llama")
    return values


def _load(load: Callable[[], Any], what: str) -> Any:
    """Return `load()`, with the many errors of the hub, of files and of configurations as one short message."""
    try:
        return load()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ConfigError(f"{what}: {' '.join(lines[:2])}") from error


def _path(name: str) -> str:
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _dtype_keyword() -> str:
    import transformers
    from packaging.version import Version

    return "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
