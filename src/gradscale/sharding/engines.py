"""Which engine put a tensor into `param_groups`: the one place where a new engine joins."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradscale.sharding import deepspeed, dtensor, fsdp1
from gradscale.sharding.roster import Roster
from gradscale.sharding.view import ADVICE, TensorView, UnsupportedShardingError, whole


def view(param: Tensor, group: dict[str, Any], index: int, place: int, roster: Roster) -> TensorView:
    """Return a tensor of `param_groups` as segments of layers.

    Args:
        param: the tensor.
        group: its param group.
        index: where the group stands in `param_groups`.
        place: where the tensor stands in the group.
        roster: what the optimizer was given.

    Raises:
        UnsupportedShardingError: nothing is known of the tensor, or an engine that is not supported has put it there.
            Nothing is ever taken for a plain parameter that is none.
    """
    info = roster.info(param)
    if info is None:
        originals = roster.originals(group, index)
        if deepspeed.owns(originals):
            return deepspeed.view(param, originals, lambda: _flat_tensors(roster), roster.info)
        info = roster.info_by_place(param, group, index, place)
    if info is None:
        raise UnsupportedShardingError(
            f"an engine put parameters of its own where the optimizer was given none. {ADVICE}"
        )
    if dtensor.is_dtensor(param):
        return dtensor.view(param, info)
    if fsdp1.is_flattened(param):
        return fsdp1.view(param, info)
    if hasattr(param, "ds_id") or (info.shape is not None and param.shape != info.shape):
        raise UnsupportedShardingError(
            f"{info.name} {list(info.shape or param.shape)} was partitioned, or replaced by a tensor of "
            f"shape {list(param.shape)}, after the optimizer was made. {ADVICE}"
        )
    return whole(param, info.name)


def _flat_tensors(roster: Roster) -> list[tuple[Tensor, Tensor]]:
    """The one tensor of each param group under ZeRO 1 and 2, with a parameter in it."""
    pairs = []
    for group in roster.groups():
        originals = roster.originals(group, -1)
        if group["params"] and originals:
            pairs.append((group["params"][0], originals[0][1]))
    return pairs
