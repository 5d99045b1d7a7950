"""DTensor: FSDP2 (`fully_shard`), hybrid sharding on a 2-D mesh, and tensor parallel.

Counts of elements need no order, so any placement that gives every element to exactly one rank of a mesh dimension will
do, whichever dimension of the tensor it cuts.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
from torch import Tensor

from gradscale.sharding.view import ADVICE, ParamInfo, TensorView, UnsupportedShardingError, whole

_PLAIN = (Tensor, torch.nn.Parameter)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor. Plain runs never import torch.distributed for this."""
    if type(tensor) in _PLAIN:  # asked several times per tensor and step
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def view(param: Tensor, info: ParamInfo) -> TensorView:
    """View of a DTensor.

    Raises:
        UnsupportedShardingError: it has another shape than the parameter that it replaced, or a placement is neither a
            shard nor a replica (a partial sum, say).
    """
    if info.shape is not None and param.shape != info.shape:
        raise UnsupportedShardingError(
            f"a DTensor of shape {list(param.shape)} replaced {info.name} {list(info.shape)}. {ADVICE}"
        )
    sharded: Any = param
    groups = []
    for dimension, placement in enumerate(sharded.placements):
        if placement.is_partial() or not (placement.is_replicate() or hasattr(placement, "dim")):
            raise UnsupportedShardingError(
                f"{info.name} has the DTensor placement {placement}, which is not supported. {ADVICE}"
            )
        if not placement.is_replicate() and sharded.device_mesh.size(dimension) > 1:
            groups.append(sharded.device_mesh.get_group(dimension))
    return whole(param, info.name, tuple(groups), local_part(param).numel())


def local_part(tensor: Tensor) -> Tensor:
    """Return the plain tensor with this rank's elements; it shares memory with `tensor`, which may be one already."""
    return cast(Tensor, cast(Any, tensor).to_local()) if is_dtensor(tensor) else tensor
