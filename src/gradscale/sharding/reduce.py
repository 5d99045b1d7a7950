"""The one collective of a grouping: sums of integer counts over the shards of each layer."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.sharding.view import Shard

_INT32_MAX = 2**31 - 1


def sum_over_shards(counts: list[Tensor], shards: list[Shard], *, largest: int) -> list[Tensor]:
    """Return the counts of whole layers from those of their local parts.

    Every rank must call it with the same layers in the same order, also for layers of which it holds nothing. Layers
    that are sharded alike travel in one all-reduce.

    Args:
        counts: int64, one tensor per layer, all of one shape.
        shards: what each of them was counted over.
        largest: elements of the largest layer; decides whether 4 bytes per count are enough.

    Returns:
        int64 tensors, on the devices of `counts`.
    """
    summed = list(counts)
    dtype = torch.int32 if largest <= _INT32_MAX else torch.int64
    by_groups: dict[tuple[int, ...], list[int]] = {}
    for index, shard in enumerate(shards):
        if shard.process_groups:
            by_groups.setdefault(tuple(id(group) for group in shard.process_groups), []).append(index)
    for members in by_groups.values():
        device = counts[members[0]].device
        together = torch.stack([counts[index].to(device=device, dtype=dtype) for index in members])
        for group in shards[members[0]].process_groups:
            torch.distributed.all_reduce(together, group=group)
        for index, row in zip(members, together, strict=True):
            summed[index] = row.to(device=counts[index].device, dtype=torch.int64)
    return summed


def any_rank(flag: bool, shards: list[Shard], device: torch.device) -> bool:
    """Whether `flag` is set on any of the ranks that hold parts of these layers."""
    found = torch.tensor([int(flag)], device=device)
    for group in dict.fromkeys(group for shard in shards for group in shard.process_groups):
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=group)
    return bool(found.item())
