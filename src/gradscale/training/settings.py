"""Every setting of a run, from the YAML file and the command line, checked before anything loads."""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from gradscale.options import nearest
from gradscale.training.adapters import check_adapter_keys
from gradscale.training.arguments import TrainArguments
from gradscale.training.command_line import ORIGIN, split_command_line
from gradscale.training.convert import convert, members
from gradscale.training.errors import ConfigError
from gradscale.training.output_folder import default_output_dir
from gradscale.training.overlays import KEYS, with_overlays, without_replaced
from gradscale.training.task import TASK
from gradscale.training.yaml_file import Setting, read_settings

FieldTypes = dict[str, tuple[dataclasses.Field[Any], Any]]


@dataclass(frozen=True)
class Settings:
    """What a command asks for.

    Attributes:
        config: the YAML file.
        command: the arguments of the command, to repeat it.
        train: our own keys.
        trainer: keyword arguments of `TrainingArguments`, `resume_from_checkpoint` excluded.
        resume: the value of `resume_from_checkpoint`: None, "last", or a folder.
    """

    config: Path
    command: tuple[str, ...]
    train: TrainArguments
    trainer: Mapping[str, Any]
    resume: str | None

    @property
    def output_dir(self) -> Path:
        """The folder of everything that the command writes."""
        return Path(self.trainer["output_dir"])

    @property
    def optimizers(self) -> list[str]:
        """The `--optim` names to run, the main one first."""
        return [self.trainer["optim"], *(self.train.compare_optim or [])]


def read_command(arguments: Sequence[str]) -> Settings:
    """Read the file and the options of `gradscale train`.

    Raises:
        ConfigError: something is missing, unknown, malformed, out of range or contradictory.
    """
    config, from_command_line = split_command_line(arguments)
    from_file = read_settings(config)  # before transformers loads: a wrong path is answered at once
    for given in (from_file, from_command_line):
        given.pop(TASK, None)  # it led here
    types = field_types(TrainArguments)
    given = with_switches(from_command_line, types)
    from_file, given = with_overlays(config, from_file, given, known=types)
    check_names([*from_file.items(), *given.items()], types)
    merged = {**without_replaced(from_file, given), **given}
    ours, trainer, resume = typed_values(config, merged, types, TrainArguments)
    settings = Settings(Path(config), tuple(arguments), TrainArguments(**ours), trainer, resume)
    _check_comparison(settings, types)
    if settings.train.streaming and trainer.get("max_steps", -1) < 1:
        raise ConfigError("streaming needs max_steps: the length of the run is not known without")
    check_adapter_keys(settings.train)
    return settings


def typed_values(
    config: str, settings: Mapping[str, Setting], types: FieldTypes, owner: type[Any]
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Convert settings and check their ranges.

    Args:
        config: path of the YAML file, after which the default `output_dir` is called.
        settings: the settings by key, all of them known.
        types: the `field_types` of `owner`.
        owner: the dataclass of our own keys.

    Returns:
        The values of `owner`'s fields, the keyword arguments of `TrainingArguments` with our defaults filled in, and
        `resume_from_checkpoint`: None, "last", or a folder.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """
    values = {name: convert(name, setting, *types[name]) for name, setting in settings.items()}
    names = {field.name for field in dataclasses.fields(owner)}
    ours = {name: value for name, value in values.items() if name in names}
    trainer = {**_defaults(config), **{name: value for name, value in values.items() if name not in names}}
    resume = trainer.pop("resume_from_checkpoint", None)
    # A null in the file leaves the default in place.
    trainer = {name: value for name, value in trainer.items() if value is not None}
    _check_ranges(trainer)
    if isinstance(trainer.get("optim_args"), dict):
        trainer["optim_args"] = optim_args_text(trainer["optim_args"])
    return ours, trainer, _resume(resume)


def field_types(ours: type[Any]) -> FieldTypes:
    """Return the dataclass field and the type of every key: the fields of `TrainingArguments` and of `ours`."""
    from transformers import TrainingArguments

    types: FieldTypes = {}
    for owner in (TrainingArguments, ours):  # ours last: some names were the Trainer's in old versions
        hints = get_type_hints(owner)
        types |= {field.name: (field, hints[field.name]) for field in dataclasses.fields(owner) if field.init}
    for name, more in (("optim_args", dict[str, Any]), ("resume_from_checkpoint", bool)):
        field, kind = types[name]
        types[name] = (field, kind | more)
    return types


def with_switches(from_command_line: Mapping[str, Setting], types: FieldTypes) -> dict[str, Setting]:
    """Return the settings of the command line with `--no_flag` as `flag: false`."""
    given = dict(from_command_line)
    for name, setting in from_command_line.items():
        positive = name.removeprefix("no_")
        if name not in types and positive in types and bool in members(types[positive][1]) and setting.value is True:
            given[positive] = Setting("false", ORIGIN)
            del given[name]
    return given


def check_names(settings: Iterable[tuple[str, Setting]], types: FieldTypes) -> None:
    """Refuse keys that do not exist.

    Raises:
        ConfigError: the first of them, with where it stands.
    """
    for name, setting in settings:
        if name not in types:
            raise ConfigError(f"{setting.origin}: unknown key {name!r}{nearest(name, [*types, TASK, *KEYS])}")


def _defaults(config: str) -> dict[str, Any]:
    """Return the defaults that differ from those of `TrainingArguments`."""
    import torch
    from transformers import TrainingArguments

    optim = next(field.default for field in dataclasses.fields(TrainingArguments) if field.name == "optim")
    return {
        "output_dir": default_output_dir(config),
        "optim": getattr(optim, "value", optim),
        # The filter would log a diverged run as a loss of 0.
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


_LEAST = {
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "seed": 0,
}


def _check_ranges(trainer: Mapping[str, Any]) -> None:
    """Refuse what `TrainingArguments` would take and the training would stumble over after the model has loaded."""
    for name, least in _LEAST.items():
        if trainer.get(name, least) < least:
            raise ConfigError(f"{name}={trainer[name]} is not allowed: expected a number of at least {least}")
    if trainer.get("max_steps", 1) < 1 and trainer["max_steps"] != -1:
        raise ConfigError(f"max_steps={trainer['max_steps']} is not allowed: expected an integer of at least 1, or -1")
    if trainer.get("num_train_epochs", 1) <= 0 and trainer.get("max_steps", -1) < 1:
        raise ConfigError(f"num_train_epochs={trainer['num_train_epochs']} is not allowed: expected a number above 0")


def optim_args_text(values: Mapping[str, Any]) -> str:
    """Return a mapping as the text that `TrainingArguments.optim_args` takes."""

    def text(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return "[" + ",".join(text(item) for item in value) + "]"
        return str(value)

    return ",".join(f"{name}={text(value)}" for name, value in values.items())


def _resume(value: Any) -> str | None:
    if value is None or value is False or str(value).lower() in ("false", "no", ""):
        return None
    return "last" if value is True or str(value).lower() in ("true", "yes", "last") else str(value)


def resume_command(arguments: Sequence[str]) -> str:
    """Return the command line that continues what `gradscale train` with these arguments began."""
    command = ["gradscale", "train"]
    skipping = False
    for item in arguments:
        if item.startswith("--"):
            name = item[2:].partition("=")[0].replace("-", "_")
            skipping = name in ("resume_from_checkpoint", "overwrite_output_dir")
        if not skipping:
            command.append(item)
    return shlex.join([*command, "--resume_from_checkpoint", "last"])


def _check_comparison(settings: Settings, types: Mapping[str, Any]) -> None:
    field, kind = types["optim"]
    for name in settings.train.compare_optim or []:
        try:
            convert("compare_optim", Setting(name, "compare_optim"), field, kind)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("compare_optim: ")) from None
    names = settings.optimizers
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"compare_optim: {name!r} is named twice (optim={names[0]!r} runs in any case)")


def training_arguments(settings: Settings, optim: str, output_dir: Path) -> Any:
    """Return the `TrainingArguments` of the run with the optimizer `optim`.

    `optim_args` and `optim_target_modules` belong to the main optimizer: those compared with it run without.

    Raises:
        ConfigError: transformers, or the optimizer's options, refuse a value.
    """
    values = {**settings.trainer, "optim": optim, "output_dir": str(output_dir)}
    if optim != settings.trainer["optim"]:
        values.pop("optim_args", None)
        values.pop("optim_target_modules", None)
    return make_training_arguments(settings.config, values)


def make_training_arguments(config: Path, values: Mapping[str, Any]) -> Any:
    """Return `TrainingArguments(**values)`.

    Raises:
        ConfigError: transformers, or the optimizer's options, refuse a value.
    """
    from transformers import TrainingArguments

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            arguments = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError, OSError, NotImplementedError) as error:
        raise ConfigError(f"{config}: {error}") from error
    _check_trackers(arguments.report_to)
    return arguments


def _check_trackers(names: Sequence[str]) -> None:
    from transformers.integrations import get_reporting_integration_callbacks, is_tensorboard_available

    try:
        get_reporting_integration_callbacks(names)
    except ValueError as error:
        raise ConfigError(f"report_to: {error}") from None
    if "tensorboard" in names and not is_tensorboard_available():
        raise ConfigError("report_to=tensorboard needs tensorboard: pip install 'gradscale[tensorboard]'")
