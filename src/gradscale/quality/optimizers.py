"""The optimizer of a cell: made by name or by class, of param groups with learning rates of their own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gradscale.adapter.named.hidden import hidden_matrices
from gradscale.bench.contestants import imported
from gradscale.integrations.optim_args import parse_optim_args
from gradscale.options import OptionError
from gradscale.presets import PRESETS, takes_presets
from gradscale.quality.study import Arm, Schedule
from gradscale.quality.together import Together
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


def make_optimizer(arm: Arm, lr: float, model: nn.Module, multipliers: Mapping[str, float]) -> tuple[Any, list[float]]:
    """Return the optimizer, and what the scheduled learning rate is multiplied by in each of its param groups.

    Args:
        arm: the arm.
        lr: its learning rate.
        model: the model; what does not require gradients is left alone.
        multipliers: further factors of the rate, by name of the parameter.

    Raises:
        ConfigError: the optimizer does not exist, or does not take the options.
    """
    members = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    factor_of, decay_of = {}, {}
    groups: dict[tuple[float, float, bool], list[Tensor]] = {}
    for name, param in members:
        kind = kind_of(name, param, model)
        factor_of[id(param)] = factor = arm.rates.get(kind, 1.0) * multipliers.get(name, 1.0)
        decay_of[id(param)] = decay = arm.schedule.weight_decay if param.dim() >= 2 else 0.0
        groups.setdefault((factor, decay, kind not in arm.unscaled), []).append(param)
    described = [
        {"params": params, "lr": lr * factor, "weight_decay": decay, **({} if scaled else {"scaled": False})}
        for (factor, decay, scaled), params in groups.items()
    ]
    optimizer = _made(arm, lr, model, described)
    for group in optimizer.param_groups:  # those that take the model make groups of their own
        group["weight_decay"] = decay_of[id(group["params"][0])]
    return optimizer, [factor_of[id(group["params"][0])] for group in optimizer.param_groups]


def _made(arm: Arm, lr: float, model: nn.Module, groups: list[dict[str, Any]]) -> Any:
    cls, options = class_and_options(arm)
    if arm.optim in REGISTRY:
        options = {**options, "module": model, "total_steps": arm.schedule.steps}
    try:
        make: Any = cls
        if _takes_model(cls):
            return make(model, lr=lr, **options)
        if arm.rest is None:
            return make(groups, lr=lr, **options)
        hidden = {id(param) for param in hidden_matrices(model)}
        of_hidden, others = (
            [
                {**group, "params": params}
                for group in groups
                if (params := [param for param in group["params"] if (id(param) in hidden) is chosen])
            ]
            for chosen in (True, False)
        )
        rest: Any = imported(arm.rest)
        return Together(make(of_hidden, lr=lr, **options), rest(others, lr=lr, **_betas(rest, arm)))
    except Exception as error:  # whatever a foreign optimizer may raise, it is its options that the user can mend
        raise ConfigError(f"{arm.name}: {arm.optim} does not take these options: {error}") from None


def class_and_options(arm: Arm) -> tuple[type[Any], dict[str, Any]]:
    """Return the class of an arm and its keywords, checked as far as its kind allows.

    Raises:
        ConfigError: the optimizer does not exist, or an option is wrong.
    """
    entry = REGISTRY.get(arm.optim)
    options = dict(arm.options)
    if arm.control is not None and (entry is None or not takes_presets(entry.options) or entry.whole_layers):
        raise ConfigError(
            f"{arm.name}: control={arm.control!r} is not allowed: {arm.optim} has no labels and scales of SGG in its "
            "state; it is for those of sgg_adamw, sgg_adam, sgg_sgd, sgg_lion and sgg_lamb"
        )
    if entry is not None:
        if arm.rest is not None:
            raise ConfigError(f"{arm.name}: rest={arm.rest!r} is not allowed: {arm.optim} takes all parameters")
        try:
            options = parse_optim_args(options, entry)
            for check in entry.checks:
                check({**{name: option.default for name, option in entry.options.items()}, **options})
        except OptionError as error:
            raise ConfigError(f"{arm.name}: {str(error).replace('--optim_args', 'options')}") from None
        if arm.control is not None:
            _check_control(arm, {**PRESETS["default"], **entry.trainer_defaults, **options})
        if "betas" in entry.trainer_fields:
            options.setdefault("betas", arm.schedule.betas)
        return entry.load(), {**entry.trainer_defaults, **own_rates(arm), **options}
    if arm.unscaled:
        raise ConfigError(f"{arm.name}: unscaled={list(arm.unscaled)} is not allowed: {arm.optim} scales nothing")
    try:
        cls = imported(arm.optim)
        if arm.rest is not None:
            imported(arm.rest)
    except ConfigError as error:
        raise ConfigError(f"{arm.name}: {error}") from None
    if _takes_model(cls) and (arm.rates or arm.rest):
        # Nothing in its groups would say so.
        key = "rates" if arm.rates else "rest"
        raise ConfigError(f"{arm.name}: {key} is not allowed: {arm.optim} takes the model and makes its own groups")
    return cls, {**_betas(cls, arm), **options}


def own_rates(arm: Arm) -> dict[str, Any]:
    """Return what stands in for an optimizer's default where an arm says itself what the embedding's rate is."""
    entry = REGISTRY.get(arm.optim)
    given = entry is not None and "embedding_lr_factor" in entry.options and "embedding" in arm.rates
    return {"embedding_lr_factor": 1.0} if given else {}


def _check_control(arm: Arm, options: Mapping[str, Any]) -> None:
    """A control that had nothing to change would be the optimizer itself under another name.

    Raises:
        ConfigError: it would.
    """
    keeps = {"grouping": ("layer", "static", "none"), "labels": ("live",)}
    if arm.control != "random_labels":
        keeps = {"grouping": ("layer", "none")}
    for name, values in keeps.items():
        if options[name] in values:
            raise ConfigError(
                f"{arm.name}: control={arm.control!r} is not allowed with {name}={options[name]!r}, which leaves it "
                "nothing to change"
            )


def _betas(cls: type[Any], arm: Arm) -> dict[str, Any]:
    """The study's, for an optimizer whose own are Adam's."""
    betas = inspect.signature(cls).parameters.get("betas")
    return {} if betas is None or betas.default != _ADAMS else {"betas": arm.schedule.betas}


def _takes_model(cls: type[Any]) -> bool:
    return next(iter(inspect.signature(cls).parameters), "") == "model"


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
