"""State that is not kept with its parameter, and options that need a whole layer on one rank."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.optim.rule import Group, Slot
from gradscale.sharding.view import TensorView, UnsupportedShardingError


def home_of(slot: Slot, device: torch.device) -> torch.device:
    """Where a state tensor of a parameter on this device is kept."""
    return torch.device("cpu") if slot.host else device


def is_pinned(slot: Slot, device: torch.device) -> bool:
    """Whether it lies in host memory that a GPU can read while it computes."""
    return slot.host and device.type == "cuda"


def brought_home(tensor: Tensor, slot: Slot, device: torch.device) -> Tensor:
    """Return a tensor in the dtype of its slot, where that is kept of a parameter on this device."""
    at_home = tensor.to(device=home_of(slot, device), dtype=slot.dtype)
    return at_home.pin_memory() if is_pinned(slot, device) else at_home


def is_away(tensor: Tensor, device: torch.device) -> bool:
    """Whether a state tensor has to be brought to this device, where its parameter is."""
    return tensor.device != device


def refuse_sharded(view: TensorView, device: torch.device, group: Group) -> None:
    """Refuse options that cannot go with a tensor of which an engine keeps parts elsewhere.

    Args:
        view: the tensor, with a scaled layer in it.
        device: where it is.
        group: its options.

    Raises:
        UnsupportedShardingError: there is one.
    """
    if not view.flat and not view.process_groups:
        return
    if group.get("grouping") == "static":
        raise UnsupportedShardingError(
            "grouping='static' needs whole layers, and an engine has sharded "
            f"{', '.join(segment.name for segment in view.segments[:3])}: train on one process or with DDP, or use "
            "another grouping"
        )
    place = group.get("labels_device", "device")
    if place != "device" and device.type != "cpu":
        raise UnsupportedShardingError(
            f"labels_device={place!r} needs whole layers, and an engine has sharded "
            f"{', '.join(segment.name for segment in view.segments[:3])}, with labels on {device.type} as its "
            "checkpoints expect: each rank has those of its shards alone; use labels_device='device' or labels='live'"
        )
