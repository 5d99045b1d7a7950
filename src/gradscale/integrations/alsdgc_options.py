"""Read `--alsdgc` into checked options of the controller, before any model is loaded. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gradscale.control.options import ALSDGC_OPTIONS, MODES, checked
from gradscale.integrations.text_lists import UnbalancedError, split_top_level
from gradscale.options import Flag, Maybe, Option, OptionError, check_options

OFF = ("", "off", "none", "false", "no")
CALLBACK_OPTIONS: Mapping[str, Option] = MappingProxyType(
    {
        **ALSDGC_OPTIONS,
        "per_group": Option(Flag(), False, "a threshold for each param group of the optimizer instead of one for all"),
    }
)


def parse_alsdgc(value: Any) -> dict[str, Any] | None:
    """Return the options that a value of `--alsdgc` gives, in their canonical types; None if it asks for nothing.

    Args:
        value: "robust", "faithful", "robust,window=64", "window=64", the text of a JSON object, a mapping (as a YAML
            file has it), True for the defaults; or None, False or "off".

    Raises:
        OptionError: an option is unknown, given twice, malformed, not allowed or contradicts another.
    """
    if value is None or value is False or (isinstance(value, str) and value.strip().lower() in OFF):
        return None
    try:
        given = _given(value)
        options = check_options(
            {name: _typed(name, one) for name, one in given.items()}, CALLBACK_OPTIONS, owner="ALSDGC"
        )
        checked({name: one for name, one in options.items() if name in ALSDGC_OPTIONS})
    except OptionError as error:
        raise OptionError(f"--alsdgc: {error}") from None
    return {"mode": "robust", **options}


def _given(value: Any) -> dict[str, Any]:
    if value is True:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str):
        raise OptionError(f"{value!r} is not allowed: expected text like 'robust,window=64', or a mapping")
    text = value.strip()
    if text.startswith("{"):
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except json.JSONDecodeError as error:
            raise OptionError(f"{text!r} is not a JSON object: {error}") from None
    else:
        pairs = [_pair(item, text) for item in _split(text)]
    given: dict[str, Any] = {}
    for name, one in pairs:
        if name in given:
            raise OptionError(f"{name} is given twice, as {given[name]!r} and {one!r}")
        given[name] = one
    return given


def _split(text: str) -> list[str]:
    try:
        return split_top_level(text)
    except UnbalancedError as error:
        raise OptionError(f"{text!r} is malformed: {error}") from None


def _pair(item: str, text: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in item.partition("="))
    if equals and name and value:
        return name, value
    if item and not equals and item.lower() not in ("true", "on"):
        return "mode", item
    if item and not equals and item == text:
        return "mode", "robust"
    raise OptionError(f"{item!r} in {text!r} is malformed: expected {' or '.join(MODES)}, or name=value")


def _typed(name: str, value: Any) -> Any:
    """The number or truth value that text spells; names stay text."""
    if not isinstance(value, str) or name not in CALLBACK_OPTIONS:
        return value
    kind, lowered = CALLBACK_OPTIONS[name].kind, value.lower()
    if isinstance(kind, Maybe) and lowered in ("none", "null"):
        return None
    if lowered in ("true", "false"):
        return lowered == "true"
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value
