"""Read `--optim_args` into typed, checked options, before any model is loaded. Standard library only.

transformers keeps the option as text, splits it at commas and ignores keys that it does not know. Here a value may
hold brackets (`betas=[0.9,0.95]`), and whatever is unknown, given twice, malformed or out of range is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gradscale.integrations.text_lists import UnbalancedError, split_top_level
from gradscale.options import Choice, Maybe, Option, OptionError, check_options
from gradscale.presets import NAME, PRESET, expanded, takes_presets
from gradscale.registry import OptimizerEntry

# Constructor keywords that have a TrainingArguments field of their own.
_ELSEWHERE = {
    "lr": "--learning_rate",
    "learning_rate": "--learning_rate",
    "weight_decay": "--weight_decay",
    "target_modules": "--optim_target_modules",
    "optim_target_modules": "--optim_target_modules",
    "total_steps": "--max_steps or --num_train_epochs",
}

_INTEGER = re.compile(r"[+-]?\d+")
_REAL = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?|nan)", re.IGNORECASE)
_CLOSING = {"[": "]", "(": ")"}


def parse_optim_args(
    value: str | Mapping[str, Any] | None, entry: OptimizerEntry, *, expand: bool = True
) -> dict[str, Any]:
    """Return the options that `value` gives to the optimizer `entry`, in their canonical types.

    Args:
        value: `"n_clusters=3,betas=[0.9,0.95]"`, the text of a JSON object, a mapping, or None or "" for no options.
        entry: the optimizer.
        expand: put the values of a preset in its place. The one with the defaults says nothing: in a Trainer these are
            the entry's.

    Raises:
        OptionError: an option is unknown, given twice, malformed, of the wrong type or out of range.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        pairs = list(_pairs_of_text(value.strip(), entry))
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise OptionError(
            f"--optim_args={value!r} is not allowed: expected text like 'n_clusters=3,betas=[0.9,0.95]' or a mapping"
        )
    given: dict[str, Any] = {}
    for key, raw in pairs:
        if not isinstance(key, str):
            raise OptionError(f"--optim_args: the option name {key!r} is not text")
        if key in given:
            raise OptionError(f"--optim_args: {key} is given twice, as {given[key]!r} and {raw!r}")
        given[key] = raw
    for key in given:
        if key in _ELSEWHERE and key not in entry.options:
            raise OptionError(f"--optim_args: {key}={given[key]!r} does not belong here, use {_ELSEWHERE[key]}")
    typed = {key: _typed(raw, key, entry) for key, raw in given.items()}
    try:
        checked = check_options(typed, _options(entry), owner=entry.name)
    except OptionError as error:
        raise OptionError(f"--optim_args: {error}") from None
    if not expand:
        return checked
    if checked.get(NAME) == PRESET.default:
        del checked[NAME]
    return expanded(checked, beside=entry.options)


def _options(entry: OptimizerEntry) -> dict[str, Option]:
    return {**entry.options, **({NAME: PRESET} if takes_presets(entry.options) else {})}


def _typed(raw: Any, key: str, entry: OptimizerEntry) -> Any:
    if not isinstance(raw, str):
        return raw
    # YAML and JSON keep some numbers as text (YAML reads 1e-8 so); names stay text whatever they look like.
    option = _options(entry).get(key)
    if option is not None and isinstance(option.kind, Choice):
        return _unquoted(raw)
    if option is not None and isinstance(option.kind, Maybe) and raw.strip().lower() in ("none", "null"):
        return None
    return _literal(raw, key)


def _pairs_of_text(text: str, entry: OptimizerEntry) -> Iterator[tuple[str, Any]]:
    if not text:
        return
    if text.startswith("{"):
        try:
            # As pairs: a JSON object would drop the first of two equal keys.
            yield from json.loads(text, object_pairs_hook=list)
        except json.JSONDecodeError as error:
            raise OptionError(f"--optim_args={text!r} is not a JSON object: {error}") from None
        return
    for item in _split(text, text):
        key, equals, raw = item.partition("=")
        key, raw = key.strip(), raw.strip()
        if not item.strip():
            raise OptionError(f"--optim_args={text!r} is malformed: an entry between commas is empty")
        if not equals:
            known = ", ".join(_options(entry))
            raise OptionError(f"--optim_args: {item.strip()!r} is malformed: expected name=value, with one of {known}")
        if not key:
            raise OptionError(f"--optim_args: {item.strip()!r} is malformed: the name before '=' is missing")
        if not raw:
            raise OptionError(f"--optim_args: {item.strip()!r} is malformed: the value of {key} is missing")
        yield key, raw


def _split(text: str, whole: str) -> list[str]:
    try:
        return split_top_level(text)
    except UnbalancedError as error:
        raise OptionError(f"--optim_args={whole!r} is malformed: {error}") from None


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _literal(text: str, key: str) -> Any:
    """Return the number, truth value, list or bare word that `text` spells."""
    text = text.strip()
    if text[:1] in _CLOSING:
        if text[-1] != _CLOSING[text[0]]:
            raise OptionError(f"--optim_args: {key}={text} is malformed: expected {_CLOSING[text[0]]!r} at the end")
        inner = text[1:-1].strip()
        return [_literal(item, key) for item in _split(inner, f"{key}={text}")] if inner else []
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _REAL.fullmatch(text):
        return float(text)
    return _unquoted(text)
