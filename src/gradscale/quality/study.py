"""A study: one task, and the optimizers that are compared on it. Read from YAML and checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradscale.options import Choice, Flag, Integer, Kind, Maybe, Option, OptionError, Pair, Real, check_option, nearest
from gradscale.training.arguments import TrainArguments
from gradscale.training.errors import ConfigError
from gradscale.training.yaml_file import parse_flow

CONTROLS = ("random_labels", "permuted_scales")
KINDS = ("embedding", "head", "matrix", "vector")
_LORA: Mapping[str, Kind] = {
    "r": Integer(1),
    "lora_alpha": Real(0.0, low_open=True),
    "lora_dropout": Real(0.0, 1.0, high_open=True),
    "use_rslora": Flag(),
    "use_dora": Flag(),
}
_BASELINE = "baseline"


@dataclass(frozen=True)
class Schedule:
    """How a model is trained, whatever the optimizer.

    Attributes:
        steps: optimizer steps.
        batch_size: sequences in each.
        warmup: share of the steps in which the learning rate rises linearly.
        schedule: how it falls after that, from the whole rate to `min_rate` times it.
        min_rate: see `schedule`.
        weight_decay: of matrices; vectors have none.
        betas: of optimizers whose defaults are Adam's, unless their own options say otherwise.
        max_grad_norm: where the norm of all gradients is clipped; None: nowhere.
        eval_every: steps between two measurements of the validation loss.
        precision: float32, or bfloat16 by autocast.
        micro_batch_size: sequences that are in memory at a time; gradients of a batch's parts are added. None: all.
        compile: run the model as code from torch.compile, which rounds otherwise than its layers one by one.
    """

    steps: int = 1500
    batch_size: int = 16
    warmup: float = 0.1
    schedule: str = "cosine"
    min_rate: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float | None = 1.0
    eval_every: int = 100
    precision: str = "float32"
    micro_batch_size: int | None = None
    compile: bool = False


_SCHEDULE: Mapping[str, Kind] = {
    "steps": Integer(2),
    "batch_size": Integer(1),
    "warmup": Real(0.0, 1.0, high_open=True),
    "schedule": Choice(("cosine", "linear", "constant")),
    "min_rate": Real(0.0, 1.0),
    "weight_decay": Real(0.0),
    "betas": Pair(Real(0.0, 1.0, high_open=True)),
    "max_grad_norm": Maybe(Real(0.0, low_open=True)),
    "eval_every": Integer(1),
    "precision": Choice(("float32", "bfloat16")),
    "micro_batch_size": Maybe(Integer(1)),
    "compile": Flag(),
}


@dataclass(frozen=True)
class Arm:
    """One of the optimizers that are compared.

    Attributes:
        name: in tables.
        optim: name of the registry, or import path of a class.
        options: its keywords.
        learning_rates: that are tried.
        rates: what the learning rate is multiplied by, for kinds of parameters (see `KINDS`).
        unscaled: kinds of parameters whose layers are not scaled, by an optimizer of the registry.
        control: what is done to SGG's groups after every grouping: labels shuffled within each layer, or the scales of
            a layer handed to other clusters.
        multipliers_from: another arm, of whose scales each layer's mean over the run multiplies the learning rate here.
        schedule: the study's, with what this arm has otherwise.
        lora: what is trained instead of the model: keywords of PEFT's `LoraConfig`; None: the model.
        rest: import path of the optimizer of all parameters that are no hidden matrix (of linear layers and
            convolutions, without the head), for an `optim` such as `torch.optim.Muon`, which takes nothing else.
    """

    name: str
    optim: str
    options: Mapping[str, Any]
    learning_rates: tuple[float, ...]
    rates: Mapping[str, float]
    control: str | None
    multipliers_from: str | None
    schedule: Schedule
    unscaled: tuple[str, ...] = ()
    lora: Mapping[str, Any] | None = None
    rest: str | None = None


@dataclass(frozen=True)
class Study:
    """See the module.

    Attributes:
        task: model and data.
        arms: by name.
        baseline: the arm that the others are compared with.
        seeds: on which the result is measured, at each arm's best learning rate.
        select_seeds: on which that is chosen; the same ones where none are given.
    """

    task: TrainArguments
    arms: Mapping[str, Arm]
    baseline: str
    seeds: tuple[int, ...]
    select_seeds: tuple[int, ...]


def read_study(path: Path) -> Study:
    """Read a study.

    Raises:
        ConfigError: the file is missing or malformed, or a key or value is wrong.
    """
    try:
        found = parse_flow(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(path)!r}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return study_of(found)
    except (ConfigError, OptionError) as error:
        raise ConfigError(f"{path}: {error}") from None


def study_of(values: Any) -> Study:
    """Return the study that a mapping describes.

    Raises:
        ConfigError, OptionError: a key is unknown or missing, or a value is wrong.
    """
    values = dict(_mapping(values, "the file"))
    of_task = {field.name for field in dataclasses.fields(TrainArguments)}
    own = {"optimizers", "baseline", "seeds", "select_seeds", "learning_rates"}
    for key in values:
        if key not in (known := {*of_task, *own, *_SCHEDULE}):
            raise ConfigError(f"unknown key {key!r}{nearest(str(key), known) or '.'}")
    schedule = _schedule(values, Schedule())
    task = TrainArguments(**{key: value for key, value in values.items() if key in of_task})
    described = _mapping(values.get("optimizers"), "optimizers")
    tried = {key: values[key] for key in ("learning_rates",) if key in values}
    arms = {str(name): _arm(str(name), entry, schedule, tried) for name, entry in described.items()}
    if not arms:
        raise ConfigError("optimizers is empty: nothing to compare")
    for arm in arms.values():
        source = arm.multipliers_from
        if source is not None and (source not in arms or arms[source].multipliers_from is not None):
            raise ConfigError(
                f"{arm.name}: multipliers_from={source!r} is not allowed: expected an optimizer of the study that has "
                "none itself"
            )
    seeds = _seeds(values.get("seeds", [1, 2, 3]), "seeds")
    select_seeds = _seeds(values.get("select_seeds", []), "select_seeds") or seeds
    study = Study(task, arms, next(iter(arms)), seeds, select_seeds)
    return with_baseline(study, str(values[_BASELINE])) if _BASELINE in values else study


def with_baseline(study: Study, baseline: str) -> Study:
    """Return the study with another optimizer that the others are compared with; its cells are the same.

    Raises:
        ConfigError: it is none of the study's.
    """
    if baseline not in study.arms:
        raise ConfigError(f"baseline={baseline!r} is no optimizer of the study{nearest(baseline, study.arms)}")
    return dataclasses.replace(study, baseline=baseline)


def _arm(name: str, entry: Any, schedule: Schedule, defaults: Mapping[str, Any]) -> Arm:
    values = {**defaults, **_mapping(entry, name)}
    own = {field.name for field in dataclasses.fields(Arm)} - {"name", "schedule"}
    known = {*own, *_SCHEDULE}
    for key in values:
        if key not in known:
            raise ConfigError(f"{name}: unknown key {key!r}{nearest(str(key), known) or '.'}")
    for key in ("optim", "learning_rates"):
        if key not in values:
            raise ConfigError(f"{name}: {key} is missing")
    rates = _mapping(values.get("rates", {}), f"{name}: rates")
    for kind, rate in rates.items():
        if kind not in KINDS:
            raise ConfigError(f"{name}: rates has no {kind!r}{nearest(str(kind), KINDS)} Known: {', '.join(KINDS)}")
        check_option(f"{name}: rates: {kind}", rate, Option(Real(0.0), None, ""))
    control = values.get("control")
    check_option(f"{name}: control", control, Option(Maybe(Choice(CONTROLS)), None, ""))
    learning_rates = values["learning_rates"]
    if not isinstance(learning_rates, list) or not learning_rates:
        raise ConfigError(f"{name}: learning_rates={learning_rates!r} is not allowed: expected a list of numbers")
    rate = Option(Real(0.0, low_open=True), None, "")
    return Arm(
        name,
        str(values["optim"]),
        dict(_mapping(values.get("options", {}), f"{name}: options")),
        tuple(sorted({check_option(f"{name}: learning_rates", one, rate) for one in learning_rates})),
        {str(kind): float(factor) for kind, factor in rates.items()},
        control,
        None if values.get("multipliers_from") is None else str(values["multipliers_from"]),
        _schedule(values, schedule, f"{name}: "),
        _unscaled(values.get("unscaled", []), name),
        None if values.get("lora") is None else _lora(_mapping(values["lora"], f"{name}: lora"), name),
        None if values.get("rest") is None else str(values["rest"]),
    )


def _unscaled(kinds: Any, name: str) -> tuple[str, ...]:
    if not isinstance(kinds, list) or any(kind not in KINDS for kind in kinds):
        raise ConfigError(f"{name}: unscaled={kinds!r} is not allowed: expected a list of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in kinds)


def _lora(values: Mapping[Any, Any], name: str) -> dict[str, Any]:
    lora: dict[str, Any] = {"target_modules": "all-linear"}
    for key, value in values.items():
        if key == "target_modules":
            words = value if isinstance(value, list) else [value]
            if not words or not all(isinstance(word, str) for word in words):
                raise ConfigError(f"{name}: lora: {key}={value!r} is not allowed: expected names of modules")
            lora[key] = value
        elif key in _LORA:
            lora[key] = check_option(f"{name}: lora: {key}", value, Option(_LORA[key], None, ""))
        else:
            known = ("target_modules", *_LORA)
            raise ConfigError(f"{name}: lora has no {key!r}{nearest(str(key), known)} Known: {', '.join(known)}")
    return lora


def _schedule(values: Mapping[str, Any], default: Schedule, owner: str = "") -> Schedule:
    given = {
        key: check_option(f"{owner}{key}", values[key], Option(kind, None, ""))
        for key, kind in _SCHEDULE.items()
        if key in values
    }
    return dataclasses.replace(default, **given)


def _seeds(values: Any, key: str) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise ConfigError(f"{key}={values!r} is not allowed: expected a list of integers")
    return tuple(dict.fromkeys(check_option(key, value, Option(Integer(0), None, "")) for value in values))


def _mapping(values: Any, owner: str) -> Mapping[Any, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{owner}: expected a mapping of keys to values")
    return values
