"""Param groups: names of parameters, and splitting by which of them are scaled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from gradscale.optim.target_modules import select_parameters


def split_by_target(params: Any, module: nn.Module, target_modules: str | list[str]) -> list[dict[str, Any]]:
    """Split param groups so that each holds only scaled or only unscaled parameters.

    Args:
        params: what optimizers take: tensors, (name, tensor) pairs, or groups of them.
        module: the model that owns them.
        target_modules: see `select_parameters`.

    Returns:
        Groups with the key `scaled`. A group that is not mixed stays whole, so that their number changes only where it
        must.

    Raises:
        ValueError: no module matches, or none of the matching modules' parameters is being optimized.
    """
    chosen = {id(param) for param in select_parameters(module, target_modules)}
    groups: list[dict[str, Any]] = []
    for group in as_groups(params):
        parts: dict[bool, list[Any]] = {True: [], False: []}
        for item in group["params"]:
            parts[id(tensor_of(item)) in chosen].append(item)
        # An empty group stays, so that trainers find the groups they made.
        kept = [scaled for scaled in (True, False) if parts[scaled]] or [False]
        groups.extend({**group, "params": parts[scaled], "scaled": scaled} for scaled in kept)
    if not any(group["scaled"] for group in groups):
        raise ValueError(
            f"target_modules={target_modules!r} matches only parameters that are not being optimized (frozen, or in no "
            "param group)"
        )
    return groups


def names_of(module: nn.Module | None) -> dict[Tensor, str]:
    """Name of every parameter of a model; of several names of a tied parameter, the first."""
    return {} if module is None else {param: name for name, param in module.named_parameters()}


def group_members(group: Mapping[str, Any]) -> list[tuple[str | None, Tensor]]:
    """(name, parameter) of every member of a finished param group; the name is None where torch was given none."""
    names: Iterable[str | None] = group.get("param_names") or [None] * len(group["params"])
    return list(zip(names, group["params"], strict=True))


def named_tensors(params: Iterable[Any], names: Mapping[Tensor, str]) -> list[tuple[str | None, Tensor]]:
    """(name, tensor) of the members of a param group that is not finished: the name that is given, or the module's."""
    pairs = [item if isinstance(item, tuple) else (None, item) for item in params]
    return [(name or names.get(tensor), tensor) for name, tensor in pairs if isinstance(tensor, Tensor)]


def as_groups(params: Any) -> list[dict[str, Any]]:
    """Return new param groups of what optimizers take: tensors, (name, tensor) pairs, or groups of them."""
    if isinstance(params, Tensor):
        raise TypeError(f"params must be an iterable of tensors or dicts, not one tensor of shape {list(params.shape)}")
    items = list(params)
    if items and isinstance(items[0], dict):
        return [{**group, "params": as_list(group["params"])} for group in items]
    return [{"params": items}]


def as_list(params: Any) -> list[Any]:
    """Members of a param group, given as one tensor or an iterable of tensors or (name, tensor) pairs."""
    return [params] if isinstance(params, Tensor) else list(params)


def tensor_of(item: Any) -> Any:
    """The tensor of a member, which may be a (name, tensor) pair."""
    return item[1] if isinstance(item, tuple) else item
