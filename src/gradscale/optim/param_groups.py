"""Param groups: names of parameters, and splitting by which of them are scaled."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from gradscale.optim.target_modules import select_parameters
from gradscale.options import OptionError

# What embedding_lr_factor="auto" is for an input embedding that is no head at the same time: see docs/quality.md.
EMBEDDING_FACTOR = 8.0


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


def split_embedding(params: Any, module: nn.Module, factor: float, lr: Any) -> list[dict[str, Any]]:
    """Split param groups so that the input embedding stands in one of its own, with a learning rate of its own.

    Args:
        params: what optimizers take: tensors, (name, tensor) pairs, or groups of them.
        module: the model, which has `get_input_embeddings` as transformers' models have.
        factor: what the learning rate of the embedding's group is multiplied by.
        lr: learning rate of groups that have none.

    Returns:
        Groups in order, the embedding's after the others of its group.

    Raises:
        OptionError: a learning rate is a tensor, which others change in place.
        ValueError: the model says of no embedding, or it is in no param group.
    """
    embedding = _weight_of(module, "get_input_embeddings")
    if embedding is None:
        raise ValueError(
            f"embedding_lr_factor={factor} has nothing to multiply: {type(module).__name__} has no input embedding "
            "(get_input_embeddings)"
        )
    groups: list[dict[str, Any]] = []
    for group in as_groups(params):
        own = [item for item in group["params"] if tensor_of(item) is embedding]
        others = [item for item in group["params"] if tensor_of(item) is not embedding]
        if others or not own:
            groups.append({**group, "params": others})
        if own:
            rate = group.get("lr", lr)
            if isinstance(rate, Tensor):
                raise OptionError(f"embedding_lr_factor={factor} needs a learning rate that is a number, not a tensor")
            groups.append({**group, "params": own, "lr": rate * factor})
    if not any(tensor_of(item) is embedding for group in groups for item in group["params"]):
        raise ValueError(
            f"embedding_lr_factor={factor} has nothing to multiply: the input embedding is not being optimized "
            "(frozen, in no param group, or laid into a vector by FSDP1 without use_orig_params)"
        )
    return groups


def auto_embedding_factor(params: Any, module: nn.Module | None, lr: Any) -> tuple[list[dict[str, Any]], float]:
    """Return param groups, and what `embedding_lr_factor="auto"` is for them.

    `EMBEDDING_FACTOR`, but 1

    * without a module, or of a model without an input embedding: nobody knows which parameter is meant;
    * where the embedding is not trained, as with adapters;
    * where the head is tied to it, which gets the rate of all other matrices;
    * with a warning, where the embedding is trained and cannot have a rate of its own: in a vector of several
      parameters (FSDP1 without use_orig_params), or where the learning rate is a tensor.

    Args:
        params: what optimizers take: tensors, (name, tensor) pairs, or groups of them.
        module: the model, or None.
        lr: learning rate of groups that have none.
    """
    groups = as_groups(params)
    embedding = None if module is None else _weight_of(module, "get_input_embeddings")
    if module is None or embedding is None or not embedding.requires_grad:
        return groups, 1.0
    if _weight_of(module, "get_output_embeddings") is embedding:
        return groups, 1.0
    own = [group for group in groups if any(tensor_of(item) is embedding for item in group["params"])]
    if not own:
        why = "the input embedding is in no param group, or laid into a vector by FSDP1 without use_orig_params"
    elif isinstance(own[0].get("lr", lr), Tensor):
        why = "the learning rate is a tensor"
    else:
        return groups, EMBEDDING_FACTOR
    warnings.warn(f"embedding_lr_factor=auto is 1 here: {why}", UserWarning, stacklevel=2)
    return groups, 1.0


def _weight_of(module: nn.Module, find: str) -> Any:
    """Return the weight of the layer that a method of the model returns, if there is one."""
    method = getattr(module, find, None)
    return None if method is None else getattr(method(), "weight", None)


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
