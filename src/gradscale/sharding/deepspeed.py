"""DeepSpeed ZeRO 1, 2 and 3, with and without offload: the only file that reads DeepSpeed's internals.

DeepSpeed gives the optimizer flat tensors of its own in place of all parameters of a group. What is in them is known
from the parameters that the optimizer was given: DeepSpeed keeps them in the model and leaves its marks on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradscale.sharding.view import ADVICE, ParamInfo, Segment, TensorView, UnsupportedShardingError

Originals = list[tuple[ParamInfo, Tensor]]
Stepped = Callable[[], list[tuple[Tensor, Tensor]]]


def owns(originals: Originals) -> bool:
    """Whether DeepSpeed ZeRO has taken these parameters over."""
    return any(hasattr(param, "ds_id") or hasattr(param, "_hp_mapping") for _, param in originals)


def view(
    tensor: Tensor, originals: Originals, stepped: Stepped, info_of: Callable[[Tensor], ParamInfo | None]
) -> TensorView:
    """View of a flat tensor of ZeRO.

    Args:
        tensor: the flat tensor, one-dimensional.
        originals: the parameters that the optimizer was given in its param group.
        stepped: the flat tensors of ZeRO 1 and 2, each with a parameter in it.
        info_of: what is known of a parameter that the optimizer was given.

    Raises:
        UnsupportedShardingError: this configuration of ZeRO is not supported.
    """
    partitioned = [param for _, param in originals if hasattr(param, "ds_id")]
    return _stage_3(tensor, partitioned, info_of) if partitioned else _stage_1_or_2(tensor, originals, stepped)


def _stage_1_or_2(tensor: Tensor, originals: Originals, stepped: Stepped) -> TensorView:
    """ZeRO 1 and 2, also as `BF16_Optimizer`: the ranks share one flat copy of a group's parameters equally.

    The 16-bit parameters are views of one flat buffer (float32 ones in float32 training), in the order in which the
    optimizer's tensor has them. Their places in its storage are right also with `round_robin_gradients`.
    """
    members = [(info, param) for info, param in originals if param.requires_grad and param.numel() > 0]
    first: Any = min((param for _, param in members), key=Tensor.storage_offset, default=None)
    storages = {param.untyped_storage().data_ptr() for _, param in members}
    if first is None or len(storages) != 1 or not hasattr(first, "_dp_group"):
        raise UnsupportedShardingError(
            f"DeepSpeed put a tensor of {tensor.numel()} elements in the place of parameters that are not in one flat "
            f"buffer. {ADVICE}"
        )
    group, base = first._dp_group, first.storage_offset()
    size = tensor.numel()
    left = torch.distributed.get_rank(group) * size
    groups = (group,) if torch.distributed.get_world_size(group) > 1 else ()
    segments = []
    members.sort(key=lambda member: member[1].storage_offset())
    for info, param in members:
        begin = int(param.storage_offset()) - base
        low, high = max(begin, left), min(begin + param.numel(), left + size)
        start, length, offset = (low - left, high - low, low - begin) if low < high else (0, 0, 0)
        segments.append(Segment(info.name, param.shape, start, length, offset, groups))

    def publish() -> None:
        """Copy to this rank's stretch of the model's own flat buffer."""
        torch.as_strided(first.detach(), (size,), (1,), base + left).copy_(tensor)

    def agrees() -> list[bool]:
        return [
            _same(_part(tensor, segment), param.detach().flatten()[segment.offset :][: segment.length])
            for segment, (_, param) in zip(segments, members, strict=True)
        ]

    return TensorView(tuple(segments), flat=True, stepped_apart=stepped, publish=publish, agrees=agrees)


def _stage_3(tensor: Tensor, partitioned: list[Any], info_of: Callable[[Tensor], ParamInfo | None]) -> TensorView:
    """ZeRO 3: every parameter is shared equally by the ranks; a sub-group's parts lie in one flat tensor."""
    zero: Any = getattr(partitioned[0], "_z3_optimizer", None)
    flats = [] if zero is None else zero.fp32_partitioned_groups_flat
    index = next((place for place, flat in enumerate(flats) if flat is tensor), -1)
    if index < 0:
        raise UnsupportedShardingError(
            f"a tensor of {tensor.numel()} elements stands in the place of parameters that DeepSpeed ZeRO 3 has "
            f"partitioned, and is none of its sub-groups. {ADVICE}"
        )
    for feature, used in (
        ("offload to NVMe", zero.swap_optimizer or zero.fp16_partitioned_groups_flat[index] is None),
        ("partial offload (offload_optimizer.ratio below 1)", zero.partial_offload != 1.0 and zero.offload_optimizer),
        ("ZenFlow", getattr(zero, "zenflow", False)),
        ("torch_autocast with float16", zero.torch_autocast_gradscaler is not None),
    ):
        if used:
            raise UnsupportedShardingError(f"DeepSpeed's {feature} is not supported: switch it off. {ADVICE}")
    segments = []
    for param in zero.fp16_groups[index]:
        _, start, part = zero.grad_position[zero.get_param_id(param)]
        group = param.ds_process_group
        offset = torch.distributed.get_rank(group) * part
        length = max(0, min(param.ds_numel - offset, part))
        groups = (group,) if torch.distributed.get_world_size(group) > 1 else ()
        info = info_of(param)
        name = info.name if info else f"parameter with ds_id {param.ds_id}"
        if length == 0:
            start = offset = 0
        segments.append(Segment(name, torch.Size(param.ds_shape), start, length, offset, groups))

    def stepped() -> list[tuple[Tensor, Tensor]]:
        return [(flat, zero.fp16_groups[place][0]) for place, flat in enumerate(flats)]

    def agrees() -> list[bool]:
        return [
            _same(_part(tensor, segment), param.ds_tensor.detach().flatten()[: segment.length])
            for segment, param in zip(segments, zero.fp16_groups[index], strict=True)
        ]

    def publish() -> None:
        zero._reassign_or_swap_out_partitioned_parameters(index)

    return TensorView(tuple(segments), flat=True, stepped_apart=stepped, publish=publish, agrees=agrees)


def _part(tensor: Tensor, segment: Segment) -> Tensor:
    return tensor[segment.start : segment.start + segment.length]


def _same(master: Tensor, values: Tensor) -> bool:
    """Whether the master copy of some values is that of these; NaN equals NaN."""
    if master.numel() != values.numel():
        return False
    rounded = master.to(device=values.device, dtype=values.dtype)
    return bool(((rounded == values) | (rounded.isnan() & values.isnan())).all())
