"""Converting a setting to the type of its dataclass field: one rule for YAML values and for the command line."""

from __future__ import annotations

import dataclasses
import enum
import math
import types
from typing import Any, Literal, Union, get_args, get_origin

from gradscale.options import nearest
from gradscale.training.errors import ConfigError
from gradscale.training.yaml_file import Setting, parse_flow

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def convert(name: str, setting: Setting, field: dataclasses.Field[Any], kind: Any) -> Any:
    """Return the setting's value in the type `kind` of `field`.

    Raises:
        ConfigError: the value is not of that type or not among the field's choices.
    """
    kinds = members(kind)
    choices = choices_of(field, kinds)
    value = setting.value
    if value is True and bool not in kinds and "const" in field.metadata:
        return field.metadata["const"]  # what argparse takes for an option without a value
    try:
        converted = _convert(value, kinds)
        if choices is not None and converted is not None and converted not in choices:
            raise ValueError
    except ValueError as error:
        near = nearest(str(value), choices) if choices is not None and isinstance(value, str) else ""
        detail = f" ({error})" if str(error) else ""
        shown = "nothing" if value is True else repr(value)
        raise ConfigError(
            f"{setting.origin}: {name}={shown} is not allowed{detail}: expected {describe(kinds, choices)}{near}"
        ) from None
    return converted


def members(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def choices_of(field: dataclasses.Field[Any], kinds: tuple[Any, ...]) -> list[str] | None:
    """Return the names that the field allows, or None where it is free."""
    if field.metadata.get("choices") is not None:
        return [str(choice) for choice in field.metadata["choices"]]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return [str(member.value) for member in kind]
    return None


def describe(kinds: tuple[Any, ...], choices: list[str] | None) -> str:
    """Return what is allowed, in words to follow "expected "."""
    if choices is not None:
        return "one of " + ", ".join(choices)
    words = []
    for kind in kinds:
        origin = get_origin(kind) or kind
        word = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}.get(origin)
        word = word or {list: "a list", dict: "a mapping"}.get(origin)
        if word and word not in words:
            words.append(word)
    return " or ".join(words) or "nothing: the key cannot be set here"


def _convert(value: Any, kinds: tuple[Any, ...]) -> Any:
    origins = [get_origin(kind) or kind for kind in kinds]
    if value is None:
        if type(None) in origins:
            return None
        raise ValueError
    if value is True:  # an option without a value
        if bool in origins:
            return True
        raise ValueError
    if isinstance(value, dict):
        if dict in origins:
            return value
        raise ValueError
    if isinstance(value, list):
        if list in origins:
            return _list(value, kinds[origins.index(list)])
        raise ValueError
    return _scalar(value, kinds, origins)


def _scalar(text: str, kinds: tuple[Any, ...], origins: list[Any]) -> Any:
    if dict in origins and text.lstrip().startswith("{"):
        value = parse_flow(text)
        if isinstance(value, dict):
            return value
        raise ValueError
    if list in origins and str not in origins and text.lstrip().startswith("["):
        value = parse_flow(text)
        if isinstance(value, list):
            return _list(value, kinds[origins.index(list)])
        raise ValueError
    if bool in origins and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if type(None) in origins and text.lower() in ("null", "~"):
        return None
    for kind in (int, float):
        if kind in origins:
            return _number(text, kind)
    if str in origins or any(origin is Literal or _is_enum(origin) for origin in origins):
        return text
    if list in origins:
        return _list([item.strip() for item in text.split(",")] if "," in text else [text], kinds[origins.index(list)])
    raise ValueError


def _number(text: str, kind: type[int] | type[float]) -> int | float:
    try:
        number = kind(text)
    except ValueError:
        raise ValueError from None  # without Python's own words
    if not math.isfinite(number):
        raise ValueError
    return number


def _list(values: list[Any], kind: Any) -> list[Any]:
    (item,) = get_args(kind) or (str,)
    if item is str and any(isinstance(value, (dict, list)) or value is None for value in values):
        raise ValueError
    return [_convert(value if isinstance(value, dict) else str(value), members(item)) for value in values]


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)
