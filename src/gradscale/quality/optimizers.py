"""The optimizer of a cell: made by name or by class, of param groups with learning rates of their own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradscale.bench.contestants import imported
from gradscale.integrations.optim_args import parse_optim_args
from gradscale.options import OptionError
from gradscale.quality.study import Arm, Schedule
from gradscale.registry import REGISTRY
from gradscale.training.errors import ConfigError

_ADAMS = (0.9, 0.999)


def kind_of(name: str, param: Tensor, model: nn.Module) -> str:
    """Return which of `study.KINDS` a parameter is. A head that is tied to the embedding is the embedding."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]  # of transformers' models
    if param is embedding.weight:
        return "embedding"
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is not None and param is head.weight:
        return "head"
    return "matrix" if param.dim() >= 2 else "vector"


def make_optimizer(
    arm: Arm, lr: float, model: nn.Module, multipliers: Mapping[str, float]
) -> tuple[Optimizer, list[float]]:
    """Return the optimizer, and what the scheduled learning rate is multiplied by in each of its param groups.

    Args:
        arm: the arm.
        lr: its learning rate.
        model: the model.
        multipliers: further factors of the rate, by name of the parameter.

    Raises:
        ConfigError: the optimizer does not exist, or does not take the options.
    """
    groups: dict[tuple[float, float], list[tuple[str, Tensor]]] = {}
    for name, param in model.named_parameters():
        factor = arm.rates.get(kind_of(name, param, model), 1.0) * multipliers.get(name, 1.0)
        decay = arm.schedule.weight_decay if param.dim() >= 2 else 0.0
        groups.setdefault((factor, decay), []).append((name, param))
    described = [
        {"params": [param for _, param in members], "lr": lr * factor, "weight_decay": decay}
        for (factor, decay), members in groups.items()
    ]
    cls, options = class_and_options(arm)
    if arm.optim in REGISTRY:
        options = {**options, "module": model, "total_steps": arm.schedule.steps}
    make: Any = cls
    try:
        optimizer: Optimizer = make(described, lr=lr, **options)
    except Exception as error:  # whatever a foreign optimizer may raise, it is its options that the user can mend
        raise ConfigError(f"{arm.name}: {arm.optim} does not take these options: {error}") from None
    return optimizer, [factor for factor, _ in groups]


def class_and_options(arm: Arm) -> tuple[type[Any], dict[str, Any]]:
    """Return the class of an arm and its keywords, checked as far as its kind allows.

    Raises:
        ConfigError: the optimizer does not exist, or an option is wrong.
    """
    entry = REGISTRY.get(arm.optim)
    options = dict(arm.options)
    if entry is not None:
        try:
            options = parse_optim_args(options, entry)
            for check in entry.checks:
                check({**{name: option.default for name, option in entry.options.items()}, **options})
        except OptionError as error:
            raise ConfigError(f"{arm.name}: {str(error).replace('--optim_args', 'options')}") from None
        if "betas" in entry.trainer_fields:
            options.setdefault("betas", arm.schedule.betas)
        return entry.load(), {**entry.trainer_defaults, **options}
    try:
        cls = imported(arm.optim)
    except ConfigError as error:
        raise ConfigError(f"{arm.name}: {error}") from None
    betas = inspect.signature(cls).parameters.get("betas")
    if betas is not None and betas.default == _ADAMS:
        options.setdefault("betas", arm.schedule.betas)
    return cls, options


def rate_at(step: int, schedule: Schedule) -> float:
    """Return what the learning rate is multiplied by at a step, from 0."""
    warm = round(schedule.warmup * schedule.steps)
    if step < warm:
        return (step + 1) / warm
    if schedule.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1, schedule.steps - 1 - warm)
    falling = 0.5 * (1 + math.cos(math.pi * done)) if schedule.schedule == "cosine" else 1 - done
    return schedule.min_rate + (1 - schedule.min_rate) * falling
