"""Splitting `CONFIG.yaml --key value ...` into settings. What a value means is decided where YAML values are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradscale.training.errors import ConfigError
from gradscale.training.yaml_file import Setting

ORIGIN = "command line"


def split_command_line(arguments: Sequence[str]) -> tuple[str, dict[str, Setting]]:
    """Return the path of the file and the settings after it; of repeated options the last one counts.

    `--key value`, `--key=value`, `--key a b` (lists), `--flag` and `--no_flag` are understood, with `-` for `_`.

    Raises:
        ConfigError: the file is not the first argument, or something is no option.
    """
    if not arguments:
        raise ConfigError("CONFIG.yaml is missing, for example: gradscale train recipes/quickstart.yaml")
    config, *rest = arguments
    if config.startswith("-"):
        raise ConfigError(f"CONFIG.yaml has to come first, got {config!r}")
    settings: dict[str, Setting] = {}
    name, values = "", list[str]()
    for item in [*rest, "--"]:
        if not item.startswith("--"):
            if not name:
                raise ConfigError(f"unexpected argument {item!r}: options look like --key value")
            values.append(item)
            continue
        if name:
            settings[name] = Setting(_value(values), ORIGIN)
        key, has_value, value = item[2:].partition("=")
        name, values = key.replace("-", "_"), [value] if has_value else []
    return config, settings


def _value(values: list[str]) -> Any:
    """No value is True (`--bf16`), one is itself, several are a list."""
    return True if not values else values[0] if len(values) == 1 else values
