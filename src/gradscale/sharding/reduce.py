"""Sums over the ranks that share a layer. Every rank must make every call, with the same layers in the same order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ProcessGroups = tuple[Any, ...]

_INT32_MAX = 2**31 - 1


def sum_over_shards(counts: list[Tensor], shards: list[ProcessGroups], *, largest: int) -> list[Tensor]:
    """Return the counts of whole layers from those of their local parts.

    Layers that are sharded alike travel in one all-reduce.

    Args:
        counts: integers, one tensor per layer, all of one shape; also of layers of which nothing is here.
        shards: the process groups over which each of them is shared; none of those that are whole.
        largest: the largest possible sum; decides whether 4 bytes per count are enough.

    Returns:
        int64 tensors, on the devices of `counts`.
    """
    summed = list(counts)
    dtype = torch.int32 if largest <= _INT32_MAX else torch.int64
    by_groups: dict[tuple[int, ...], list[int]] = {}
    for index, groups in enumerate(shards):
        if groups:
            by_groups.setdefault(tuple(id(group) for group in groups), []).append(index)
    for members in by_groups.values():
        groups = shards[members[0]]
        device = _device_for(groups[0], counts[members[0]].device)
        together = torch.stack([counts[index].to(device=device, dtype=dtype) for index in members])
        for group in groups:
            torch.distributed.all_reduce(together, group=group)
        for index, row in zip(members, together, strict=True):
            summed[index] = row.to(device=counts[index].device, dtype=torch.int64)
    return summed


def largest_on_any_rank(values: list[int], shards: list[ProcessGroups]) -> list[int]:
    """Return the largest of each value over all ranks that share anything with this one."""
    groups = dict.fromkeys(group for shard in shards for group in shard)
    for group in groups:
        found = torch.tensor(values, device=_device_for(group, torch.device("cpu")))
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=group)
        values = found.tolist()
    return values


def _device_for(group: Any, device: torch.device) -> torch.device:
    """A device whose tensors the process group can reduce: `device` if it can (NCCL cannot on the CPU)."""
    types = [one.type for one in group._device_types]
    return device if device.type in types or not types else torch.device(types[0])
