"""Which task a command asks for: the key `task`, read before anything else because the other keys depend on it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from gradscale.options import nearest
from gradscale.training.command_line import split_command_line
from gradscale.training.errors import ConfigError
from gradscale.training.yaml_file import Setting, read_settings

TASK = "task"
TASKS = ("language-modeling", "image-classification")  # the first one is the default


def read_task(arguments: Sequence[str]) -> str:
    """Return the task that the file or the command line names.

    A file that cannot be read names none here: whoever reads its settings says what is wrong with it.

    Raises:
        ConfigError: there is no such task, or the command line is malformed.
    """
    config, from_command_line = split_command_line(arguments)
    setting = from_command_line.get(TASK) or _in_file(config) or Setting(TASKS[0], "default")
    if setting.value not in TASKS:
        shown = "nothing" if setting.value is True else repr(setting.value)
        near = nearest(setting.value, TASKS) if isinstance(setting.value, str) else ""
        raise ConfigError(f"{setting.origin}: task={shown} is not allowed: expected one of {', '.join(TASKS)}{near}")
    return str(setting.value)


def _in_file(config: str) -> Setting | None:
    with contextlib.suppress(ConfigError):
        return read_settings(config).get(TASK)
    return None
