"""The optimizer that a Trainer would make, over parameters on the meta device, and what it does to each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from gradscale.adapter.sgg import SGG
from gradscale.integrations.trainer_patch import optimizer_class_and_kwargs
from gradscale.integrations.training_args_patch import check_training_args
from gradscale.optim.members import Member
from gradscale.optim.model_ends import HIDDEN
from gradscale.optim.param_groups import group_members
from gradscale.optim.scaled import ScaledOptimizer
from gradscale.registry import OptimizerEntry
from gradscale.training.errors import ConfigError


@dataclass(frozen=True)
class Planned:
    """A parameter of the model.

    Attributes:
        name: its first name.
        param: the parameter.
        member: how the optimizer sees it; None where it is frozen, and so in no param group.
        group: number of its param group.
        also: its other names, where it is tied.
        unscaled: why it is not scaled; None where it is.
    """

    name: str
    param: nn.Parameter
    member: Member | None
    group: int | None
    also: tuple[str, ...]
    unscaled: str | None


@dataclass(frozen=True)
class Plan:
    """An optimizer and its model's parameters, in the model's order.

    Attributes:
        optimizer: the optimizer.
        parameters: the parameters.
        options: its options, those of the first param group where groups have their own.
    """

    optimizer: ScaledOptimizer | SGG
    parameters: list[Planned]
    options: Mapping[str, Any]

    @property
    def scaled(self) -> list[Planned]:
        """The layers that are scaled."""
        return [planned for planned in self.parameters if planned.unscaled is None]


def trainer_arguments(*, optim: str, optim_args: str | None, target_modules: Any, max_steps: int) -> Any:
    """Return what our Trainer integration reads of `TrainingArguments`, with the Trainer's defaults."""
    return SimpleNamespace(
        optim=optim,
        optim_args=optim_args,
        optim_target_modules=target_modules,
        max_steps=max_steps,
        learning_rate=5e-5,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
    )


def check_arguments(arguments: Any) -> None:
    """Refuse what `TrainingArguments` would refuse, with the same words, before anything loads.

    Raises:
        ConfigError: an option of the optimizer is wrong, or a library that it needs is missing.
    """
    try:
        check_training_args(arguments)
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from None


def make_plan(model: nn.Module, entry: OptimizerEntry, arguments: Any) -> Plan:
    """Make the optimizer as the Trainer does, and ask it about every parameter.

    Raises:
        ConfigError: the optimizer refuses its options or the model's parameters.
    """
    try:
        kind, kwargs = optimizer_class_and_kwargs(arguments, entry, model)
        optimizer = kind(_trainer_groups(model), **kwargs)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    assert isinstance(optimizer, ScaledOptimizer | SGG)  # all of the registry's are
    places = {
        id(param): (index, place)
        for index, group in enumerate(optimizer.param_groups)
        for place, (_, param) in enumerate(group_members(group))
    }
    names: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
    parameters = []
    for name, param in model.named_parameters():
        group, place = places.get(id(param), (None, 0))
        member = None
        if group is not None:
            member = optimizer._table.member(param, optimizer.param_groups[group], group, place)
        also = tuple(other for other in names[id(param)] if other != name)
        parameters.append(Planned(name, param, member, group, also, _why_not(param, member, optimizer._end_names)))
    return Plan(optimizer, parameters, _options_of(optimizer, entry, kwargs))


def _options_of(optimizer: ScaledOptimizer | SGG, entry: OptimizerEntry, given: Mapping[str, Any]) -> dict[str, Any]:
    first = optimizer.param_groups[0]
    if isinstance(optimizer, SGG):
        # What the base made of its own may be anything; what SGG made of its is in the groups.
        defaults = {name: option.default for name, option in entry.options.items()}
        first = {**defaults, **given, **optimizer._options.of(first)}
    return {name: first[name] for name in (*entry.options, "total_steps") if name in first}


def _trainer_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The param groups of `Trainer.create_optimizer`: with weight decay, and without."""
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, model))
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    return [
        {"params": [param for name, param in trained if name in decayed]},
        {"params": [param for name, param in trained if name not in decayed], "weight_decay": 0.0},
    ]


def _why_not(param: torch.Tensor, member: Member | None, ends: frozenset[str]) -> str | None:
    """Why a parameter is not scaled, in words; whether it is, has been decided.

    Args:
        param: the parameter.
        member: as the optimizer sees it; None if it is frozen.
        ends: names of the model's input embedding and output head.
    """
    if member is None:
        return "frozen"
    group: Mapping[str, Any] = member.group
    if member.scaled:  # some scalers count every parameter in a sum
        return None if group["scaled"] else "not in target modules"
    if param.numel() == 0:
        return "empty"
    if param.dim() < 2:
        return f"{param.dim()}-D"
    if not group["scaled"]:
        return "not in target modules"
    for name in ("grouping", "statistic"):
        if group.get(name) == "none":
            return f"{name}=none"
    if group["n_clusters"] == 1:
        return "n_clusters=1"
    at_an_end = any(segment.name in ends for segment in member.view.segments)
    return "scope=hidden" if group.get("scope") == HIDDEN and at_an_end else "by its options"
