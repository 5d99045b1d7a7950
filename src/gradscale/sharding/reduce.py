"""Sums over the ranks that share a layer. Every rank must make every call, with the same layers in the same order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ProcessGroups = tuple[Any, ...]

_INT32_MAX = 2**31 - 1


def sharded_alike(shards: list[ProcessGroups]) -> list[tuple[ProcessGroups, list[int]]]:
    """Return which of a list of layers can be summed together.

    Args:
        shards: the process groups over which each layer is shared; none of those that are whole, which are left out.

    Returns:
        Each set of process groups, with the places in the list of the layers that are shared over it.
    """
    by_groups: dict[tuple[int, ...], list[int]] = {}
    for index, groups in enumerate(shards):
        if groups:
            by_groups.setdefault(tuple(id(group) for group in groups), []).append(index)
    return [(shards[members[0]], members) for members in by_groups.values()]


def send_buffer(rows: int, columns: int, groups: ProcessGroups, device: torch.device, *, largest: int) -> Tensor:
    """Return memory `[rows, columns]` for integers that are to be summed over process groups.

    Args:
        rows: how many layers.
        columns: how many integers of each.
        groups: the process groups.
        device: where it should be, if the process groups can sum there.
        largest: the largest possible sum; decides whether 4 bytes per integer are enough.
    """
    dtype = torch.int32 if largest <= _INT32_MAX else torch.int64
    return torch.empty(rows, columns, dtype=dtype, device=_device_for(groups[0], device))


def sum_in_place(buffer: Tensor, groups: ProcessGroups) -> None:
    """Sum a tensor over all ranks of the process groups, one all-reduce for each of them."""
    for group in groups:
        torch.distributed.all_reduce(buffer, group=group)


def sum_of_all_ranks(numbers: Tensor, groups: ProcessGroups) -> Tensor:
    """Return numbers summed over all ranks of the process groups, on the device that they are on."""
    sums = numbers.to(_device_for(groups[0], numbers.device), copy=True)
    sum_in_place(sums, groups)
    return sums.to(numbers.device)


def sum_over_shards(counts: list[Tensor], shards: list[ProcessGroups], *, largest: int) -> list[Tensor]:
    """Return the counts of whole layers from those of their local parts.

    Layers that are sharded alike travel in one all-reduce.

    Args:
        counts: integers, one vector per layer, all of one length; also of layers of which nothing is here.
        shards: the process groups over which each of them is shared; none of those that are whole.
        largest: the largest possible sum; decides whether 4 bytes per count are enough.

    Returns:
        int64 tensors, on the devices of `counts`.
    """
    summed = list(counts)
    for groups, members in sharded_alike(shards):
        first = counts[members[0]]
        together = send_buffer(len(members), len(first), groups, first.device, largest=largest)
        for index, row in zip(members, together, strict=True):
            row.copy_(counts[index])
        sum_in_place(together, groups)
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
