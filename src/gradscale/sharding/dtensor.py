"""DTensor: FSDP2 (`fully_shard`), hybrid sharding on a 2-D mesh, and tensor parallel.

Counts of elements need no order, so any placement that gives every element to exactly one rank of a mesh dimension will
do, whichever dimension of the tensor it cuts.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from torch import Tensor


def is_dtensor(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor. Plain runs never import torch.distributed for this."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def process_groups(tensor: Tensor) -> tuple[Any, ...]:
    """Process groups of the mesh dimensions over which a DTensor is sharded; its copies on the others are equal.

    Raises:
        ValueError: a placement is neither a shard nor a replica (a partial sum, say).
    """
    sharded: Any = tensor
    groups = []
    for dimension, placement in enumerate(sharded.placements):
        if placement.is_partial() or not (placement.is_replicate() or hasattr(placement, "dim")):
            raise ValueError(f"a parameter with the DTensor placement {placement} is not supported")
        if not placement.is_replicate() and sharded.device_mesh.size(dimension) > 1:
            groups.append(sharded.device_mesh.get_group(dimension))
    return tuple(groups)


def local_part(tensor: Tensor) -> Tensor:
    """The elements of a DTensor on this rank, in shared memory."""
    return cast(Tensor, cast(Any, tensor).to_local())
