"""View of unsharded parameters (one process, DDP): every tensor is one whole layer.

Tensors of engines that shard are refused, because group statistics of a shard are not those of its layer.
"""

from __future__ import annotations

from collections.abc import Container

from torch import Tensor

from gradscale.sharding.segment import Segment


class UnsupportedShardingError(RuntimeError):
    """A tensor is sharded, flattened or replaced by an engine in a way that is not supported."""


def plain_segments(param: Tensor, original: Container[Tensor]) -> tuple[Segment, ...]:
    """Return the segments of a parameter that no engine has touched: one, the whole.

    Args:
        param: a tensor in `param_groups`.
        original: the parameters that the optimizer was made with (looked up by identity, as tensors hash).

    Raises:
        UnsupportedShardingError: the tensor is a DTensor, belongs to FSDP1, or is not one of `original`.
    """
    advice = "Train on one process or with DDP, or use a base optimizer without scaling (such as adamw_torch_fused)."
    # By attribute, so that plain runs do not import torch.distributed.
    if hasattr(param, "placements") and hasattr(param, "device_mesh"):
        raise UnsupportedShardingError(f"parameters sharded by FSDP2 or tensor parallel are not supported. {advice}")
    if getattr(param, "_fsdp_flattened", False) or hasattr(param, "_sharded_size"):
        raise UnsupportedShardingError(f"parameters flattened by FSDP1 are not supported. {advice}")
    if hasattr(param, "ds_id") or param not in original:
        raise UnsupportedShardingError(
            f"a parameter was replaced or partitioned after the optimizer was made (DeepSpeed ZeRO does this). {advice}"
        )
    return (Segment(shape=tuple(param.shape), offset=0, start=0, length=param.numel()),)
