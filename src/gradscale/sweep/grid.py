"""The grid of a sweep: its axes, and what each of its cells is called."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gradscale.integrations.text_lists import UnbalancedError, split_top_level
from gradscale.training.errors import ConfigError

Values: TypeAlias = tuple[str, ...]  # of a cell, in the order of the axes
_LONGEST = 40  # characters of a value in the name of a folder


@dataclass(frozen=True)
class Axis:
    """A setting, and the values that it takes.

    Attributes:
        key: as `gradscale train` knows it.
        values: as on the command line.
    """

    key: str
    values: tuple[str, ...]


def read_axes(texts: Sequence[str]) -> list[Axis]:
    """Read "key=value,value,...". A value with commas of its own is quoted, or stands in brackets.

    Raises:
        ConfigError: one is malformed, or names a key or a value twice.
    """
    axes: list[Axis] = []
    for text in texts:
        key, equals, listed = text.partition("=")
        key = key.strip().lstrip("-")
        try:
            values = tuple(value.strip("'\"") for value in split_top_level(listed))
        except UnbalancedError as error:
            raise ConfigError(f"--over {text!r} is malformed: {error}") from None
        if not equals or not key or not all(values):
            raise ConfigError(
                f"--over {text!r} is malformed: expected key=value,value,... such as learning_rate=1e-3,3e-3"
            )
        if len(set(values)) < len(values):
            raise ConfigError(f"--over {text!r} names a value twice")
        if any(axis.key == key for axis in axes):
            raise ConfigError(f"--over {key} is given twice")
        axes.append(Axis(key, values))
    if not axes:
        raise ConfigError("nothing to sweep over: give --over key=value,value,... once or more")
    return axes


def cells_of(axes: Sequence[Axis]) -> list[Values]:
    """Return the values of every cell, the last axis the fastest."""
    return list(itertools.product(*(axis.values for axis in axes)))


def folder_name(axes: Sequence[Axis], cell: Values) -> str:
    """Return the name of a cell's folder: its values, where they can stand in one, else a part and a hash."""
    parts = []
    for axis, value in zip(axes, cell, strict=True):
        name = re.sub(r"[^\w.+-]+", "_", value)
        if name != value or len(name) > _LONGEST:
            name = f"{name[:_LONGEST]}-{hashlib.sha256(value.encode()).hexdigest()[:8]}"
        parts.append(f"{axis.key}={name}")
    return ",".join(parts)


def title(axes: Sequence[Axis], cell: Values) -> str:
    """Return what a cell is called in messages."""
    return " ".join(f"{axis.key}={value}" for axis, value in zip(axes, cell, strict=True))
