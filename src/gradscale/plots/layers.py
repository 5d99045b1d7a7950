"""Names of layers: short ones for pictures, kinds of layers, and which layers a pattern means."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from gradscale.options import nearest
from gradscale.training.errors import ConfigError

# What the names of all layers share, and what an engine or PEFT puts before them.
_SAID_ANYWAY = {
    "model",
    "base_model",
    "transformer",
    "module",
    "weight",
    "layers",
    "h",
    "encoder",
    "decoder",
    "default",
}


def short_name(name: str) -> str:
    """Return a parameter's name without the parts that all layers share."""
    return ".".join(part for part in name.split(".") if part not in _SAID_ANYWAY) or name


def kind_of(name: str) -> str:
    """Return what a parameter is in its block: its short name without the numbers of blocks."""
    return ".".join(part for part in short_name(name).split(".") if not part.isdigit()) or name


def matching(names: Sequence[str], patterns: Sequence[str], where: str) -> list[str]:
    """Return the names that match any of the patterns, in the order of the patterns.

    Args:
        names: of layers.
        patterns: a part of a name (`q_proj`), or with `*` and `?` a pattern for the whole of it.
        where: what has these layers, for the message.

    Raises:
        ConfigError: a pattern matches no name.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        here = [name for name in names if _matches(name, pattern)]
        if not here:
            parts = [part for name in names for part in name.split(".")]
            close = nearest(pattern, [*names, *map(short_name, names), *map(kind_of, names), *parts])
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise ConfigError(f"--layers {pattern}: no such layer in {where}{close} (it has {len(names)}: {shown})")
        found |= dict.fromkeys(here)
    return list(found)


def _matches(name: str, pattern: str) -> bool:
    if any(sign in pattern for sign in "*?"):
        return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(short_name(name), pattern)
    # A number stands for a block: "1.mlp" is not in "11.mlp".
    return (
        f".{pattern}." in f".{name}."
        or f".{pattern}." in f".{short_name(name)}."
        or (not pattern[:1].isdigit() and pattern in name)
    )
