"""What a study compares: methods, resets, and the cells that they make with models and seeds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from gradscale.options import nearest
from gradscale.training.convert import convert
from gradscale.training.errors import ConfigError
from gradscale.training.settings import FieldTypes
from gradscale.training.yaml_file import as_setting
from gradscale.vision.arguments import StudyArguments
from gradscale.vision.resnet import DEPTHS, title

RESETS = ("soft", "hard")
_REQUIRED = ("table", "name", "optim", "learning_rate")


@dataclass(frozen=True, eq=False)  # by identity: cells are keys, and mappings have no hash
class Method:
    """An optimizer with its settings.

    Attributes:
        table: the table of results in which it stands, such as LARS.
        name: its name in that table, such as Baseline.
        optim: any value of `--optim`.
        learning_rate: the highest one of the schedule.
        optim_args: options of the optimizer.
        reset_args: further options with each reset. A method without is run once for a model, whatever its resets.
        weight_decay: in place of the study's.
    """

    table: str
    name: str
    optim: str
    learning_rate: float
    optim_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    reset_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    weight_decay: float | None = None

    def options(self, reset: str | None) -> dict[str, Any]:
        """Return the optimizer's options in a cell with this reset."""
        return {**self.optim_args, **(self.reset_args[reset] if reset is not None else {})}


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        model: a name of `DEPTHS`.
        method: how it is trained.
        reset: the reset whose options the method takes, None for a method without.
        seed: of weights and images.
    """

    model: str
    method: Method
    reset: str | None
    seed: int

    @property
    def folder(self) -> Path:
        """Where the run writes, in the folder of the study."""
        words = [self.method.table, self.method.name, *([self.reset] if self.reset else [])]
        return Path("cells") / self.model / "-".join(map(_slug, words)) / f"seed-{self.seed}"

    @property
    def title(self) -> str:
        """The cell in words, for lines of output."""
        reset = f" {self.reset} reset" if self.reset else ""
        return f"{title(self.model)} {self.method.table} {self.method.name}{reset} seed {self.seed}"


def read_methods(values: Sequence[Mapping[str, Any]], types: FieldTypes) -> tuple[Method, ...]:
    """Return the methods that the key `methods` describes.

    Args:
        values: its mappings.
        types: fields and types of `TrainingArguments`, which know the names of optimizers.

    Raises:
        ConfigError: a key or a value of a mapping is not allowed, or two methods have one name.
    """
    if not values:
        raise ConfigError("methods=[] is not allowed: expected a list of one method at least")
    methods = tuple(_read_method(number, given, types) for number, given in enumerate(values, start=1))
    folders: dict[Path, int] = {}
    for number, method in enumerate(methods, start=1):
        for reset in method.reset_args or (None,):
            folder = Cell("model", method, reset, 0).folder
            if folder in folders:
                raise ConfigError(
                    f"methods, number {number}: table={method.table!r} with name={method.name!r} is taken by number "
                    f"{folders[folder]}"
                )
            folders[folder] = number
    return methods


def _read_method(number: int, given: Mapping[str, Any], types: FieldTypes) -> Method:
    origin = f"methods, number {number}"
    hints = get_type_hints(Method)
    fields = {field.name: (field, hints[field.name]) for field in dataclasses.fields(Method)}
    fields["optim"] = types["optim"]
    for name in given:
        if name not in fields:
            raise ConfigError(f"{origin}: unknown key {name!r}{nearest(str(name), fields)}; known: {', '.join(fields)}")
    for name in _REQUIRED:
        if given.get(name) is None:
            raise ConfigError(f"{origin}: {name} is missing")
    values = {name: convert(name, as_setting(value, origin), *fields[name]) for name, value in given.items()}
    method = Method(**values)
    for name, least in (("learning_rate", 0.0), ("weight_decay", 0.0)):
        value = getattr(method, name)
        if value is not None and value < least:
            raise ConfigError(f"{origin}: {name}={value} is not allowed: expected a number of at least {least:g}")
    for name in ("table", "name"):
        if not _slug(getattr(method, name)):
            raise ConfigError(f"{origin}: {name}={getattr(method, name)!r} is not allowed: expected letters or digits")
    for reset, options in method.reset_args.items():
        if reset not in RESETS:
            raise ConfigError(f"{origin}: reset_args has {reset!r}, expected {' or '.join(RESETS)}")
        if not isinstance(options, dict):
            raise ConfigError(f"{origin}: reset_args: {reset}={options!r} is not allowed: expected a mapping")
    return method


def read_models(values: Mapping[str, Any], methods: Sequence[Method]) -> dict[str, tuple[str, ...]]:
    """Return the resets of every model that the key `models` names.

    Raises:
        ConfigError: a model or a reset is unknown, or a method says nothing about a reset that a model asks for.
    """
    models: dict[str, tuple[str, ...]] = {}
    for model, given in values.items():
        if model not in DEPTHS:
            near = nearest(str(model), DEPTHS)
            raise ConfigError(f"models: unknown model {model!r}: expected one of {', '.join(DEPTHS)}{near}")
        resets = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        if not resets or any(reset not in RESETS for reset in resets) or len(set(resets)) < len(resets):
            raise ConfigError(f"models: {model}={given!r} is not allowed: expected soft, hard or [soft, hard]")
        for method in methods:
            for reset in resets:
                if method.reset_args and reset not in method.reset_args:
                    raise ConfigError(
                        f"models: {model}={given!r}, but reset_args of {method.table} {method.name} has no {reset!r}"
                    )
        models[model] = resets
    if not models:
        raise ConfigError("models={} is not allowed: expected a mapping such as {resnet20: soft}")
    return models


def make_cells(
    models: Mapping[str, Sequence[str]], methods: Sequence[Method], study: StudyArguments
) -> tuple[Cell, ...]:
    """Return the runs of a study, seed by seed, so that what a killed study leaves can be compared."""
    return tuple(
        Cell(model, method, reset, seed)
        for seed in study.seeds
        for model, resets in models.items()
        for method in methods
        for reset in (resets if method.reset_args else (None,))
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
