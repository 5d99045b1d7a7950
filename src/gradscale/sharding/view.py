"""What a tensor in `param_groups` holds on this rank, by the engine that put it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradscale.sharding import dtensor


class UnsupportedShardingError(RuntimeError):
    """A tensor is sharded, flattened or replaced by an engine in a way that is not supported."""


@dataclass(frozen=True)
class Shard:
    """The part of one layer that a tensor of `param_groups` holds on this rank.

    Attributes:
        process_groups: sums over all of them, one after the other, count every element of the layer exactly once.
            Empty where this rank holds the whole layer.
    """

    process_groups: tuple[Any, ...] = ()


WHOLE = Shard()


def view(param: Tensor, shape: torch.Size | None) -> Shard:
    """Return what a tensor in `param_groups` holds.

    Args:
        param: the tensor.
        shape: shape of the parameter that the optimizer was given at this place, before any sharding; None if it was
            not known then.

    Raises:
        UnsupportedShardingError: the tensor belongs to FSDP1 or DeepSpeed ZeRO, is a DTensor whose parts do not add up
            to the parameter, or has another shape than the parameter that it replaces.
    """
    advice = "Train on one process, with DDP or with FSDP2, or use an optimizer without scaling (adamw_torch_fused)."
    if dtensor.is_dtensor(param):
        if shape is not None and param.shape != shape:
            raise UnsupportedShardingError(f"a DTensor of shape {list(param.shape)} replaced a parameter {list(shape)}")
        try:
            return Shard(dtensor.process_groups(param))
        except ValueError as error:
            raise UnsupportedShardingError(f"{error}. {advice}") from None
    if getattr(param, "_fsdp_flattened", False) or hasattr(param, "_sharded_size"):
        raise UnsupportedShardingError(f"parameters flattened by FSDP1 are not supported. {advice}")
    if hasattr(param, "ds_id") or (shape is not None and param.shape != shape):
        raise UnsupportedShardingError(
            f"a parameter was replaced or partitioned after the optimizer was made (DeepSpeed ZeRO does this). {advice}"
        )
    return WHOLE


def local_part(tensor: Tensor) -> Tensor:
    """Return the plain tensor with this rank's elements; it shares memory with `tensor`, which may be one already."""
    return dtensor.local_part(tensor) if dtensor.is_dtensor(tensor) else tensor
