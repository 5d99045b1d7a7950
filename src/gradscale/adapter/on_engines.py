"""What an adapter asks of the tensors that engines bring, before it changes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscale.adapter.on_shards import check_on_shards
from gradscale.adapter.one_tensor import Group
from gradscale.adapter.traits import Traits
from gradscale.optim.members import Member
from gradscale.sharding.dtensor import local_part
from gradscale.sharding.reduce import largest_on_any_rank
from gradscale.sharding.view import UnsupportedShardingError


class PartsOfAStep:
    """Which tensors of a training step have been updated: DeepSpeed makes several calls of `step()` of one."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def is_last(self, together: Sequence[Member], current: Sequence[Member]) -> bool:
        """Whether this call of `step()` brings the last tensors.

        Args:
            together: all tensors of the training step.
            current: those that are updated now.

        Raises:
            RuntimeError: one comes again before all others have come. The next call begins a training step.
        """
        if not any(member.view.stepped_apart is not None for member in current):
            return True
        ids = {id(member.param) for member in current}
        if ids & self._seen:
            self._seen.clear()
            raise RuntimeError(
                "DeepSpeed left some of the optimizer's tensors out of the last training step, or that was broken off"
            )
        self._seen |= ids
        last = all(id(member.param) in self._seen for member in together)
        if last:
            self._seen.clear()
        return last


def may_step_elsewhere(members: Sequence[Member]) -> bool:
    """Whether other ranks may have gradients though this one has none, as FSDP1 gives none to what lies elsewhere."""
    return any(
        member.view.flat and member.view.process_groups and member.view.stepped_apart is None for member in members
    )


def only_makes_state(members: Sequence[Member], groups: Sequence[Group]) -> bool:
    """Whether a first step is only asked for to have state to load into.

    torch.distributed.checkpoint does that, with a learning rate of 0 and gradients of 0. Such a step must not count.
    Every rank must call it.
    """
    if any(float(group.get("lr", 1.0)) != 0 for group in groups):
        return False
    if any(member.view.stepped_apart is not None for member in members):
        return False
    moves = any(bool(local_part(member.param.grad).any()) for member in members if member.param.grad is not None)
    return not largest_on_any_rank([int(moves)], [member.view.process_groups for member in members])[0]


def refuse_unsupported(owner: str, updates: Sequence[Member]) -> None:
    """Raise RuntimeError where a gradient is sparse, or not that of the tensor."""
    for member in updates:
        grad = member.param.grad
        if grad is not None and grad.layout != torch.strided:
            raise RuntimeError(f"{owner} does not support sparse gradients")
        if grad is not None and grad.shape != member.param.shape:
            raise RuntimeError(
                f"a gradient of shape {list(grad.shape)} does not fit a parameter of shape "
                f"{list(member.param.shape)}: with FSDP1, call step() after a backward() outside of no_sync()"
            )


def refuse_past_loading(owner: str, new: Sequence[Member], groups: Sequence[Group], state: Any, rows: str) -> None:
    """Refuse state that DeepSpeed's universal checkpoint wrote into an optimizer without `load_state_dict`.

    It has the moments of Adam alone: what else a base keeps would be lost without a word.

    Args:
        owner: the adapter, for messages.
        new: tensors that have not been stepped before, if no state was loaded.
        groups: all param groups.
        state: the base's, by tensor.
        rows: the key under which per-layer state travels in param groups.

    Raises:
        UnsupportedShardingError: such state is there.
    """
    written = any(member.view.stepped_apart is not None and state.get(member.param) for member in new)
    if written or any(rows in group for group in groups):
        raise UnsupportedShardingError(
            f"DeepSpeed's universal checkpoint cannot be loaded into {owner} around another optimizer: it keeps no "
            "more than the moments of Adam. Resume with the number of ranks that the checkpoint was saved with, or "
            "train with an optimizer by name, such as sgg_adamw"
        )


def check_base(base: Optimizer, members: Sequence[tuple[Member, Group, Traits]], *, tries_shards: bool = True) -> None:
    """Check that a base can step what engines have sharded. Every rank must call it, with the same layers.

    Args:
        base: the optimizer inside.
        members: sharded tensors, each with its param group and what is known of the base there.
        tries_shards: whether to step shards of layers beside whole ones; else they are taken to be right.

    Raises:
        UnsupportedShardingError: it cannot. On all ranks.
    """
    for member, _, traits in members:
        if member.view.flat and not traits.elementwise:
            raise UnsupportedShardingError(
                f"an engine laid shards of layers into vectors, and {type(base).__name__}'s update of an element "
                "depends on others of its layer: use FSDP2 or DDP, or an elementwise base"
            )
    whole: list[tuple[Tensor, Mapping[str, Any], tuple[Any, ...]]] = [
        (member.param, group, member.view.process_groups) for member, group, _ in members if not member.view.flat
    ]
    if tries_shards:
        check_on_shards(base, whole)
