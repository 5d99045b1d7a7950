"""Reading configuration files of other tools, so that an error says which file and where in it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradscale.training.errors import ConfigError


def read_mapping(path: str, what: str) -> dict[str, Any]:
    """Return the mapping that a JSON file (by its name) or a YAML file holds.

    Args:
        path: the file.
        what: the option that names it, for messages.

    Raises:
        ConfigError: the file is missing, malformed, gives a key twice, or holds something else.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{what}: there is no file {path!r}{_beside(file)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{what}: {path!r} is a folder, expected a file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what}: {path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be read: {error.strerror}") from None
    value = _json(text, path, what) if file.suffix == ".json" else _yaml(text, path, what)
    if not isinstance(value, dict):
        raise ConfigError(f"{what}: {path} holds {type(value).__name__}, expected a mapping of keys to values")
    return value


def section(config: Mapping[str, Any], name: str, origin: str) -> dict[str, Any]:
    """Return the mapping under a key, empty where the key is missing or null.

    Raises:
        ConfigError: something else is there.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{origin}: {name}={value!r} is not allowed: expected a mapping of keys to values")
    return dict(value or {})


def unknown_keys(given: Iterable[str], known: Iterable[str], matter: Iterable[str], origin: str) -> list[str]:
    """Return the keys that the tool does not know and so ignores, going on with its defaults.

    Args:
        given: keys of a file.
        known: keys that the tool knows.
        matter: those of them that decide how the optimizer runs.
        origin: where the keys stand.

    Raises:
        ConfigError: one looks like a misspelled one of those that matter.
    """
    unknown = [str(key) for key in given if key not in set(known)]
    for key in unknown:
        close = difflib.get_close_matches(key, list(matter), n=1, cutoff=0.8)
        if close:
            raise ConfigError(f"{origin}: unknown key {key!r}, did you mean {close[0]!r}? It would be ignored")
    return unknown


def integer(value: Any, name: str, origin: str, *, least: int = 1) -> int:
    """Return a whole number, given as one or as its text.

    Raises:
        ConfigError: it is none, or too small.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not text.lstrip("-").isdigit() or int(text) < least:
        raise ConfigError(f"{origin}: {name}={value!r} is not allowed: expected an integer of at least {least}")
    return int(text)


def truth(value: Any, name: str, origin: str) -> bool:
    """Return a truth value, given as one or in one of the spellings that accelerate takes.

    Raises:
        ConfigError: it is none.
    """
    text = str(value).strip().lower()
    if text in ("y", "yes", "t", "true", "on", "1"):
        return True
    if text in ("n", "no", "f", "false", "off", "0"):
        return False
    raise ConfigError(f"{origin}: {name}={value!r} is not allowed: expected true or false")


def _json(text: str, path: str, what: str) -> Any:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"{what}: {path} gives the key {key!r} twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{what}: {where}: this is not JSON: {error.msg}") from None


def _yaml(text: str, path: str, what: str) -> Any:
    try:
        from gradscale.training.yaml_file import parse_flow
    except ImportError:
        raise ConfigError(f"{what}: reading YAML needs PyYAML: pip install 'gradscale[train]'") from None
    try:
        value = parse_flow(text)
    except ValueError as error:
        raise ConfigError(f"{what}: {path}{_yaml_problem(str(error))}") from None
    return {} if value is None else value


def _yaml_problem(text: str) -> str:
    """Place and problem in PyYAML's message, which is several lines: what it was doing, where, and what it met."""
    marks = re.findall(r"line (\d+), column (\d+)", text)
    where = ", line {}, column {}".format(*marks[-1]) if marks else ""
    problem = [line for line in text.splitlines() if line and not line.startswith(" ")][-1]
    return f"{where}: this is not YAML: {problem}"


def _beside(file: Path) -> str:
    """The name of a file in the same folder that may have been meant."""
    if not file.parent.is_dir():
        return ""
    close = difflib.get_close_matches(file.name, [entry.name for entry in file.parent.iterdir()], n=1, cutoff=0.75)
    return f", did you mean {str(file.with_name(close[0]))!r}?" if close else ""
