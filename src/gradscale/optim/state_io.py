"""Loading of optimizer state: exact dtypes, and refusal of damaged state before anything is changed.

`torch.optim.Optimizer.load_state_dict` casts every state tensor to the dtype of its parameter, which would turn uint8
labels into floats and round float32 scales of bfloat16 parameters. It leaves alone what is neither a tensor nor a
container, so tensors travel through it inside an opaque holder, and are taken out again with the dtype of their slot.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradscale.optim.placement import brought_home, home_of, is_pinned
from gradscale.optim.rule import Slot, State
from gradscale.sharding.dtensor import local_part


@dataclass(frozen=True)
class Held:
    """A tensor that torch's loading must not cast."""

    tensor: Tensor


def hold_tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a state dict in which the tensors of every parameter's state are held. Tensors are shared."""
    held = {
        key: {name: Held(value) if isinstance(value, Tensor) else value for name, value in state.items()}
        for key, state in state_dict["state"].items()
        if isinstance(state, Mapping)
    }
    return {**state_dict, "state": {**state_dict["state"], **held}}


def check_state(state: Mapping[str, Any], slots: Mapping[str, Slot], required: set[str], *, owner: str) -> None:
    """Check what was saved for one parameter against the slots that it is to fill.

    Args:
        state: saved state of one parameter, tensors by key.
        slots: what this parameter's state holds.
        required: keys that must be there; the others start anew when missing.
        owner: optimizer and parameter, for messages.

    Raises:
        ValueError: a required key is missing, or a tensor has the wrong shape or is no tensor.
    """
    missing = sorted(required - set(state))
    if missing:
        raise ValueError(
            f"the loaded state of {owner} has no {', '.join(missing)} (it has {', '.join(map(str, state))}): it is "
            "that of another kind of optimizer, or damaged. Nothing was loaded."
        )
    step = state["step"]
    number = step.item() if isinstance(step, Tensor) and step.numel() == 1 else step
    if not isinstance(number, numbers.Real) or not (float(number) >= 0 and float(number).is_integer()):
        raise ValueError(
            f"the loaded state of {owner} has step={step!r}, expected a number of steps. Nothing was loaded."
        )
    for key, slot in slots.items():
        if key in state:
            wrong = _wrong(state[key], slot)
            if wrong:
                raise ValueError(f"the loaded state of {owner} has {key} with {wrong}. Nothing was loaded.")


def check_form(state_dict: Any) -> None:
    """Raise ValueError unless this looks like what `state_dict()` returns."""
    good = isinstance(state_dict, Mapping) and isinstance(state_dict.get("state"), Mapping)
    groups = state_dict.get("param_groups") if good else None
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple) for group in groups
    ):
        found = list(state_dict) if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise ValueError(
            "this is no optimizer state: expected 'state', a mapping, and 'param_groups', a list of mappings with "
            f"'params', got {found}. Nothing was loaded."
        )
    for key, state in state_dict["state"].items():
        if not isinstance(state, Mapping) and isinstance(key, int):
            raise ValueError(
                f"the loaded state of parameter {key} is {state!r}, expected a mapping. Nothing was loaded."
            )


def _wrong(value: Any, slot: Slot) -> str:
    """What is wrong with a saved value, or nothing."""
    if not isinstance(value, Tensor) or value.shape != slot.shape:
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        return f"{found}, expected shape {list(slot.shape)}"
    if value.layout != torch.strided or value.is_complex():
        return f"{value.dtype} in layout {value.layout}, expected dense real numbers"
    # Other optimizers and engines hand back labels as floats; what counts is that they are labels.
    values = local_part(value).detach()
    whole = slot.dtype.is_floating_point or not values.is_floating_point() or bool((values == values.floor()).all())
    unordered = slot.ascending and bool((values[..., 1:] < values[..., :-1]).any())
    if (values.is_floating_point() and not slot.may_be_nan and bool(values.isnan().any())) or not whole or unordered:
        return "values that are not " + ("in order" if unordered else "whole" if not whole else "numbers")
    if values.numel() and bool(((values < slot.lowest) | (values > slot.highest)).any()):
        return f"values outside [{slot.lowest:g}, {slot.highest:g}]"
    return ""


def restore_state(state: State, slots: Mapping[str, Slot], param: Tensor) -> list[str]:
    """Bring one parameter's state, as loaded, unpickled or copied, to the form that `step()` expects. In place.

    Args:
        state: state of `param`, changed.
        slots: what it holds; slots that are missing are filled with their initial value.
        param: the parameter.

    Returns:
        Keys that were missing.
    """
    for key, value in state.items():
        tensor = value.tensor if isinstance(value, Held) else value
        if key == "step":
            # The step stays on the host, so that reading it never waits for the device.
            state[key] = step_tensor(float(tensor))
        elif isinstance(tensor, Tensor):
            # A key of another optimizer is cast as torch does it.
            slot = slots[key] if key in slots else Slot(param.dtype, tensor.shape)
            state[key] = brought_home(tensor, slot, param.device)
        else:
            state[key] = tensor
    missing = [key for key in slots if key not in state]
    state.update({key: new_tensor(slots[key], param) for key in missing})
    return missing


def new_tensor(slot: Slot, param: Tensor) -> Tensor:
    """Make a state tensor; one that is shaped like its parameter is laid out like it."""
    device, pinned = home_of(slot, param.device), is_pinned(slot, param.device)
    if slot.shape != param.shape:
        return torch.full(slot.shape, slot.fill, dtype=slot.dtype, device=device, pin_memory=pinned)
    if device == param.device:
        return torch.full_like(param, slot.fill, dtype=slot.dtype, memory_format=torch.preserve_format)
    return torch.full_like(param, slot.fill, dtype=slot.dtype, device=device, pin_memory=pinned)


def step_tensor(value: float) -> Tensor:
    """Step counts are float32 tensors, as torch's own (exact up to 2^24 steps)."""
    return torch.tensor(value, dtype=torch.float32, device="cpu")
