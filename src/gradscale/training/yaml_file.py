"""Reading a YAML mapping with the line of every key, so that an error can say where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gradscale.training.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """One value as it was given.

    Attributes:
        value: the text of a scalar as written, None for null, or a list or dict of typed values.
        origin: where it was given, for messages, such as "recipes/quickstart.yaml, line 3".
    """

    value: Any
    origin: str


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.2) and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _refuse_duplicates(node)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def read_settings(path: str | Path) -> dict[str, Setting]:
    """Read a file of `key: value` settings.

    Scalars keep their text as written: what they mean (`no`, `1e-3`, `007`) is the setting's to decide, exactly as on
    the command line.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or gives a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(path)!r}") from None
    except IsADirectoryError:
        raise ConfigError(f"{str(path)!r} is a folder, expected a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return _settings(_Loader(text), str(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from None


def as_setting(value: Any, origin: str) -> Setting:
    """Return a value that YAML has typed already as a setting, whose scalars are texts."""
    return Setting(value if value is None or isinstance(value, (list, dict)) else str(value), origin)


def parse_flow(text: str) -> Any:
    """Return the value of a YAML or JSON flow such as `{a: 1}`.

    Raises:
        ValueError: the text is malformed.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _settings(loader: _Loader, path: str) -> dict[str, Setting]:
    root = loader.get_single_node()
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: expected a mapping of keys to values")
    _refuse_duplicates(root)
    loader.flatten_mapping(root)
    settings = {}
    for key, value in root.value:
        origin = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{origin}: expected a key, got a {key.id}")
        name = key.value.replace("-", "_")
        if isinstance(value, yaml.ScalarNode):
            null = value.tag == "tag:yaml.org,2002:null"
            settings[name] = Setting(None if null else value.value, origin)
        else:
            settings[name] = Setting(loader.construct_object(value, deep=True), origin)
    return settings


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        name = key.value.replace("-", "_")
        if name in lines:
            problem = f"the key {key.value!r} is given twice, first in line {lines[name]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        lines[name] = key.start_mark.line + 1
