"""An adapter's state of tensors that FSDP1 or DeepSpeed flattened, on its way through checkpoints.

What belongs to a layer travels in the param groups, as that of the named optimizers does (`optim.layer_rows`).
What belongs to an element stays in the state, in the form that FSDP1 can take apart and put together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradscale.optim.layer_rows import KEY, Rows, per_layer_keys, rows_of, with_rows
from gradscale.optim.members import Member
from gradscale.optim.rule import Slot, State
from gradscale.optim.state_io import new_tensor
from gradscale.sharding import fsdp1


def is_flattened(member: Member) -> bool:
    """Whether an engine flattened a tensor; FSDP1 keeps it whole on one rank, and flattens the same on several."""
    return member.view.flat or fsdp1.is_flattened(member.param)


def move_rows_to_groups(
    state_dict: dict[str, Any], flat: Mapping[Any, Member], slots_of: Callable[[Member], dict[str, Slot]], prefix: str
) -> None:
    """Move the per-layer state of flattened tensors to the param groups of a state dict, in place.

    Args:
        state_dict: the base's, with the adapter's state joined to it; its dicts are changed.
        flat: the flattened tensors, by their keys in it.
        slots_of: what the adapter keeps of a tensor.
        prefix: of the adapter's keys.
    """
    state, rows = state_dict["state"], Rows()
    for key, member in flat.items():
        slots = slots_of(member)
        own = {name: state.get(key, {}).get(f"{prefix}{name}") for name in slots}
        rows |= rows_of(member, {name: value for name, value in own.items() if value is not None}, slots)
        moved = {f"{prefix}{name}" for name in per_layer_keys(member, slots)}
        if key in state:
            state[key] = {name: value for name, value in state[key].items() if name not in moved}
    _shape_for_fsdp1(state, {key: one for key, one in flat.items() if one.view.stepped_apart is None}, prefix)
    for packed in state_dict["param_groups"]:
        packed[f"{prefix}{KEY}"] = rows


def _shape_for_fsdp1(state: dict[Any, dict[str, Any]], flat: Mapping[Any, Member], prefix: str) -> None:
    """FSDP1 wants of all tensors of a unit the same keys, and of one tensor all state in one dtype."""
    keys = {name for key in flat for name in state.get(key, {}) if str(name).startswith(prefix)}
    for key, member in flat.items():
        param, found = member.param, state.get(key, {})
        if keys and param.requires_grad:
            dtype = _dtype_of_state(found, param, prefix)
            own = {name: found[name].to(dtype) for name in keys if name in found}
            state[key] = {**found, **{name: torch.zeros_like(param, dtype=dtype) for name in keys}, **own}


def _dtype_of_state(state: Mapping[str, Any], param: Tensor, prefix: str) -> torch.dtype:
    """The dtype in which a base keeps its state; else that of the adapter's."""
    by_base_first = sorted(state.items(), key=lambda item: str(item[0]).startswith(prefix))
    floats = (value.dtype for _, value in by_base_first if _is_float_like(value, param))
    return next(floats, torch.float32)


def _is_float_like(value: Any, param: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == param.shape and value.is_floating_point()


def completed(own: State, member: Member, slots: Mapping[str, Slot], rows: Any) -> State:
    """Return the saved state of a flattened tensor with what its param group has of its layers.

    Args:
        own: as saved with the tensor, without prefix; FSDP1 brings what any tensor has for all.
        member: the tensor.
        slots: what is kept of it.
        rows: what the param group brought.

    Raises:
        ValueError: the rows are not numbers.
    """
    own = {name: value for name, value in own.items() if name in slots}
    if rows is not None and member.has_nothing_here:
        # FSDP1 brings nothing for it, but each rank knows the scales of all layers.
        empty = {name: slot for name, slot in slots.items() if slot.shape == member.param.shape}
        own |= {name: new_tensor(slot, member.param) for name, slot in empty.items()}
    return with_rows(own, member, slots, rows)
