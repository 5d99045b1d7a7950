"""Reading saved state: everything is checked, and named when wrong, before anything of it is used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def section(value: Any, key: str, names: Iterable[str]) -> Mapping[str, Any]:
    """Return `value` if it is a mapping of exactly these names; `key` is what messages call it.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is not a mapping: {value!r}")
    wanted = set(names)
    for name in sorted(wanted - set(value)):
        raise ValueError(f"{key}: {name} is missing")
    for name in value:
        if name not in wanted:
            raise ValueError(f"{key}: {name} is unknown")
    return value


def count(state: Mapping[str, Any], key: str, most: int | None = None) -> int:
    """Return state[key], an integer of at least 0.

    Raises:
        ValueError: it is something else, or above `most`.
    """
    value = state[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0 or (most is not None and value > most):
        raise ValueError(f"{key}={value!r} is not a count" + ("" if most is None else f" of at most {most}"))
    return value


def flag(state: Mapping[str, Any], key: str) -> bool:
    """Return state[key], a bool.

    Raises:
        ValueError: it is something else.
    """
    value = state[key]
    if not isinstance(value, bool):
        raise ValueError(f"{key}={value!r} is not true or false")
    return value


def number(value: Any, key: str, *, positive: bool = False) -> float:
    """Return a finite number.

    Raises:
        ValueError: it is something else, or not above 0 where it has to be.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{key}={value!r} is not a finite number")
    if positive and value <= 0:
        raise ValueError(f"{key}={value!r} is not above 0")
    return float(value)


def numbers(state: Mapping[str, Any], key: str) -> list[float]:
    """Return state[key], a list of finite numbers.

    Raises:
        ValueError: it is something else.
    """
    values = state[key]
    if not isinstance(values, list | tuple):
        raise ValueError(f"{key} is not a list of numbers: {values!r}")
    return [number(value, f"{key}[{index}]") for index, value in enumerate(values)]


def bounded_scale(state: Mapping[str, Any], options: Mapping[str, Any]) -> float:
    """Return state["scale"], moved into the bounds that the options set now.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    scale = number(state["scale"], "scale", positive=True)
    return float(min(max(scale, options["min_loss_scale"]), options["max_loss_scale"]))
