"""Every setting of a study, from the YAML file and the command line, checked before anything loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradscale.training.command_line import split_command_line
from gradscale.training.errors import ConfigError
from gradscale.training.overlays import KEYS, with_overlays
from gradscale.training.settings import (
    FieldTypes,
    check_names,
    field_types,
    make_training_arguments,
    optim_args_text,
    typed_values,
    with_switches,
)
from gradscale.training.task import TASK
from gradscale.training.yaml_file import Setting, as_setting, read_settings
from gradscale.vision.arguments import StudyArguments
from gradscale.vision.methods import Cell, Method, make_cells, read_methods, read_models
from gradscale.vision.sources import DIGITS

_IN_METHODS = "it belongs to each of the methods"
_ONE_PROCESS = "a study runs in one process"
# What a study decides itself, and what to do instead.
_NOT_HERE = {
    "optim": _IN_METHODS,
    "optim_args": _IN_METHODS,
    "learning_rate": _IN_METHODS,
    "optim_target_modules": "the networks are trained whole",
    "seed": "set seeds",
    "data_seed": "set seeds",
    "num_train_epochs": "set max_steps",
    "eval_strategy": "set eval_steps",
    "load_best_model_at_end": "the accuracy is that of the last step, the best one is reported beside it",
    "auto_find_batch_size": "all runs have the batch size that is set",
    "deepspeed": _ONE_PROCESS,
    "fsdp": _ONE_PROCESS,
}
_NEEDED = ("max_steps", "eval_steps")


@dataclass(frozen=True)
class StudySettings:
    """What a command asks for.

    Attributes:
        config: the YAML file.
        command: the arguments of the command, to repeat it.
        study: our own keys.
        models: the resets of every model.
        methods: what is compared.
        trainer: keyword arguments of `TrainingArguments` that all runs share.
        resume: whether an earlier study is continued.
    """

    config: Path
    command: tuple[str, ...]
    study: StudyArguments
    models: Mapping[str, tuple[str, ...]]
    methods: tuple[Method, ...]
    trainer: Mapping[str, Any]
    resume: bool

    @property
    def output_dir(self) -> Path:
        """The folder of everything that the command writes."""
        return Path(self.trainer["output_dir"])

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All runs of the study."""
        return make_cells(self.models, self.methods, self.study)


def read_study(arguments: Sequence[str]) -> StudySettings:
    """Read the file and the options of `gradscale train` with `task: image-classification`.

    Raises:
        ConfigError: something is missing, unknown, malformed, out of range or contradictory.
    """
    config, from_command_line = split_command_line(arguments)
    from_file = read_settings(config)
    for given in (from_file, from_command_line):
        given.pop(TASK, None)  # it led here
    types = field_types(StudyArguments)
    given = with_switches(from_command_line, types)
    from_file, given = with_overlays(config, from_file, given, known=types)
    merged = {**from_file, **_digits_settings(from_file, given, types), **given}
    check_names([*from_file.items(), *merged.items()], types)
    for name, setting in (*from_file.items(), *merged.items()):
        if name in _NOT_HERE:
            raise ConfigError(f"{setting.origin}: {name} is not allowed in image-classification: {_NOT_HERE[name]}")
    required = [
        field.name
        for field in dataclasses.fields(StudyArguments)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    for name in (*required, *_NEEDED):
        if name not in merged or merged[name].value is None:
            raise ConfigError(f"{config}: {name} is missing")
    ours, trainer, resume = typed_values(config, merged, types, StudyArguments)
    if trainer["max_steps"] < 1:
        raise ConfigError(f"max_steps={trainer['max_steps']} is not allowed: expected an integer of at least 1")
    if resume not in (None, "last"):
        raise ConfigError(f"resume_from_checkpoint={resume!r} is not allowed: a study continues with 'last'")
    study = StudyArguments(**ours)
    methods = read_methods(study.methods, types)
    return StudySettings(
        config=Path(config),
        command=tuple(arguments),
        study=study,
        models=read_models(study.models, methods),
        methods=methods,
        trainer={**_study_defaults(), **trainer},
        resume=resume is not None,
    )


def _digits_settings(
    from_file: Mapping[str, Setting], given: Mapping[str, Setting], types: FieldTypes
) -> dict[str, Setting]:
    """Return the settings that stand in for those of the file where the digits are the data."""
    data = given.get("data") or from_file.get("data")
    setting = from_file.get("digits_settings")
    if setting is None or setting.value is None:
        return {}
    if not isinstance(setting.value, dict):
        raise ConfigError(f"{setting.origin}: digits_settings={setting.value!r} is not allowed: expected a mapping")
    origin = f"{setting.origin}, digits_settings"
    settings = {str(name): as_setting(value, origin) for name, value in setting.value.items()}
    for name in settings:
        if name in ("data", "digits_settings", TASK, *KEYS):
            raise ConfigError(f"{origin}: {name} is not allowed in it")
    check_names(settings.items(), types)  # also where they do not count today
    return settings if data is not None and data.value == DIGITS else {}


def _study_defaults() -> dict[str, Any]:
    """Return what suits many short runs: no progress bars, and no checkpoints within a run."""
    return {"disable_tqdm": True, "save_strategy": "no"}


def cell_arguments(settings: StudySettings, cell: Cell) -> Any:
    """Return the `TrainingArguments` of one run.

    Raises:
        ConfigError: transformers, or the optimizer's options, refuse a value.
    """
    method = cell.method
    own: dict[str, Any] = {
        "output_dir": str(settings.output_dir / cell.folder),
        "optim": method.optim,
        "learning_rate": method.learning_rate,
        "seed": cell.seed,
        "eval_strategy": "steps",
        "remove_unused_columns": False,
    }
    if options := method.options(cell.reset):
        own["optim_args"] = optim_args_text(options)
    if method.weight_decay is not None:
        own["weight_decay"] = method.weight_decay
    arguments = make_training_arguments(settings.config, {**settings.trainer, **own})
    if arguments.world_size > 1:
        raise ConfigError(f"image-classification runs in one process, not in {arguments.world_size}")
    return arguments
