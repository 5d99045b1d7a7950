"""Per-layer state of flat tensors on its way through checkpoints.

In memory it is a tensor with a row per layer. FSDP1 takes state that is shaped like its parameters, or equal for all
of them; DeepSpeed's universal checkpoint takes nothing but moments. Both keep param groups as they are, so that is
where the rows travel: by the name of the layer, in every group (DeepSpeed's universal checkpoint hands that of the
first to all).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradscale.optim.members import Member
from gradscale.optim.rule import Slot, State

KEY = "layers"

Rows = dict[str, dict[str, list[float]]]


def rows_of(member: Member, state: Mapping[str, Any], slots: Mapping[str, Slot]) -> Rows:
    """Return the per-layer state of a tensor as numbers, by layer and key."""
    keys = [key for key in per_layer_keys(member, slots) if key in state]
    return {
        segment.name: {key: (state[key][row] if member.view.flat else state[key].flatten()).tolist() for key in keys}
        for row, segment in enumerate(member.scaled)
    }


def with_rows(state: State, member: Member, slots: Mapping[str, Slot], rows: Any) -> State:
    """Return a state completed by what `rows` holds of its layers; unchanged unless all of them are there.

    Raises:
        ValueError: the rows are not numbers.
    """
    if not isinstance(rows, Mapping) or not member.scaled or any(one.name not in rows for one in member.scaled):
        return state
    taken = {}
    for key in per_layer_keys(member, slots):
        try:
            values = torch.tensor([rows[segment.name][key] for segment in member.scaled], dtype=torch.float32)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"the loaded {key} of {member.scaled[0].name} are damaged: {error}. Nothing was loaded."
            ) from None
        taken[key] = values if member.view.flat else values[0].view(slots[key].shape)
    return {**state, **taken}


def per_layer_keys(member: Member, slots: Mapping[str, Slot]) -> list[str]:
    """Keys of state that is kept per layer and not per element."""
    return [key for key, slot in slots.items() if member.scaled and slot.shape != member.param.shape]


def dtypes_for_fsdp1(member: Member, slots: Mapping[str, Slot], momentum: str) -> dict[str, torch.dtype]:
    """Return in which dtype FSDP1 gets each per-element tensor: integers in that of the momentum, which they label."""
    rows = per_layer_keys(member, slots)
    kept = {key: slot.dtype for key, slot in slots.items() if key not in rows}
    labels = kept.get(momentum, member.param.dtype)  # a base without momentum keeps nothing else per element
    return {key: dtype if dtype.is_floating_point else labels for key, dtype in kept.items()}


def for_fsdp1(state: State, param: Tensor, dtypes: Mapping[str, torch.dtype]) -> State:
    """Return a state as FSDP1 can take it apart and put it together.

    All tensors have the same keys, filled with zeros.

    Args:
        state: state of one tensor.
        param: the tensor.
        dtypes: see `dtypes_for_fsdp1`; of the keys of all tensors.
    """
    filled = {**{key: torch.zeros_like(param, dtype=dtype) for key, dtype in dtypes.items()}, **state}
    return {key: value.to(dtypes[key]) if key in dtypes else value for key, value in filled.items()}
