"""What an optimizer keeps, and what a step must move at least: counted in its tensors, not computed."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.optim import Optimizer

# Not written by a step.
_READ_ONLY = ("labels",)


def state_bytes(optimizer: Optimizer) -> dict[str, int]:
    """Return the bytes of all storages in the optimizer's state by the key that they stand under, each counted once."""
    found: dict[str, int] = defaultdict(int)
    seen: set[tuple[torch.device, int]] = set()
    for state in optimizer.state.values():
        for key, value in state.items():
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            place = (value.device, storage.data_ptr())
            if place not in seen:
                seen.add(place)
                found[str(key)] += storage.nbytes()
    return dict(found)


def step_bytes(optimizer: Optimizer) -> int:
    """Return the bytes that one pass over memory moves: g and labels read, p and the other state read and written."""
    params: list[Tensor] = [param for group in optimizer.param_groups for param in group["params"]]
    state = state_bytes(optimizer)
    read_only = sum(size for key, size in state.items() if key in _READ_ONLY)
    read_only += sum(param.grad.nbytes for param in params if param.grad is not None)
    written = sum(param.nbytes for param in params)
    written += sum(size for key, size in state.items() if key not in _READ_ONLY)
    return read_only + 2 * written
