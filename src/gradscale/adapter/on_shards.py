"""Whether a base steps shards (DTensors) as it steps whole layers: found out on the mesh, by stepping small ones.

An elementwise rule needs nothing of other ranks. LAMB's norms, Adafactor's means and Muon's products do: a base whose
operations DTensor knows gets those of the whole layer, one that looks at its local part would get others, without a
word. Nothing in a base's code or name says which; so a twin steps a small matrix that is sharded as the parameters are,
on all of their ranks, beside one that steps it whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscale.adapter.twin import across, twin_of, twin_options
from gradscale.sharding.dtensor import is_dtensor, local_part
from gradscale.sharding.reduce import largest_on_any_rank
from gradscale.sharding.view import UnsupportedShardingError

_STEPS = 3
_SIZE = 130  # of a dimension that is larger; some factor only what is larger than 128
_SHARE = 0.1  # of the update; Muon's bfloat16 is off by 0.03, a statistic of a shard by far more
_WEIGHTS, _GRADS = 0.02, 0.1

_Sharded = tuple[Tensor, Mapping[str, Any], tuple[Any, ...]]


def check_on_shards(base: Optimizer, sharded: Sequence[_Sharded]) -> None:
    """Step shards and whole tensors alike, and compare. Nothing of the base is changed. Every rank must call it.

    Args:
        base: the optimizer.
        sharded: DTensor parameters, each with its param group and the process groups over which it is shared; those of
            whole tensors are left out.

    Raises:
        UnsupportedShardingError: the base steps them differently, or cannot step one. On all ranks.
    """
    kinds: dict[Any, tuple[Any, Mapping[str, Any]]] = {}
    groups: list[tuple[Any, ...]] = []
    for param, group, process_groups in sharded:
        if is_dtensor(param) and process_groups:
            kinds.setdefault((id(group), _kind(param)), (param, group))
            groups.append(process_groups)
    if not kinds:
        return
    said = ""
    for param, group in kinds.values():
        # All of them, whatever this rank has seen: the others wait for it in the sums of the next.
        try:
            found = _difference(base, group, param)
        except Exception as error:
            found = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        said = said or found
    if largest_on_any_rank([int(bool(said))], groups)[0]:
        name = f"{type(base).__module__}.{type(base).__qualname__}"
        raise UnsupportedShardingError(
            f"{name} does not step shards of a layer (DTensor) as it steps the layer"
            f"{f' ({said})' if said else ', on another rank'}: use DDP, or another optimizer; nothing has been changed"
        )


def _kind(param: Any) -> tuple[Any, ...]:
    """What of a sharded parameter decides how it is stepped: two of a kind are tried once."""
    cut = [_lines(param, dimension) for dimension in range(param.dim())]
    shape = _small(param)
    sizes = [(size % lines, size < lines * lines) if lines > 1 else () for size, lines in zip(shape, cut, strict=True)]
    return id(param.device_mesh), tuple(param.placements), param.dim(), tuple(sizes)


def _lines(param: Any, dimension: int) -> int:
    """Into how many parts a dimension is cut."""
    lines = 1
    for place, placement in enumerate(param.placements):
        if getattr(placement, "dim", None) == dimension:
            lines *= int(param.device_mesh.size(place))
    return lines


def _small(param: Any) -> list[int]:
    """The shape of a smaller tensor that is cut as evenly, or unevenly, as a parameter is."""
    small = []
    for dimension, size in enumerate(param.shape):
        lines = _lines(param, dimension)
        small.append(size if size <= _SIZE else size - (size - _SIZE) // lines * lines)
    return small


def _difference(base: Optimizer, group: Mapping[str, Any], param: Any) -> str:
    """Say how a twin that steps shards differs from one that steps whole tensors; nothing if it does not."""
    from torch.distributed.tensor import distribute_tensor

    shape, device = _small(param), local_part(param).device
    generator = torch.Generator().manual_seed(0)
    # Far from alike in all parts, so that what is computed of one shard is not that of the layer.
    slopes: Any = torch.ones(())
    for size in shape:
        slopes = slopes.unsqueeze(-1) * torch.linspace(0.1, 2.0, size)
    weights, *grads = (
        (torch.randn(shape, generator=generator) * scale * (slopes + 0.1)).to(device)
        for scale in (_WEIGHTS, *[_GRADS] * _STEPS)
    )

    if weights.dim() > 1:
        grads = [across(grad, weights) for grad in grads]

    def cut(tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, param.device_mesh, param.placements, src_data_rank=None)

    parts, whole = (twin_of(base, [start], twin_options(base, dict(group))) for start in (cut(weights), weights))
    for step, grad in enumerate(grads, 1):
        for twin, one in ((parts, cut(grad)), (whole, grad)):
            twin.param_groups[0]["params"][0].grad = one.clone()
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(step)
                twin.step()
    found, right = (twin.param_groups[0]["params"][0].detach() for twin in (parts, whole))
    moved, expected, begin = (local_part(one).double() for one in (found, cut(right), cut(weights)))
    distance, length = float((moved - expected).norm()), float((expected - begin).norm())
    # In an empty part nothing is off.
    if distance <= _SHARE * length:
        return ""
    return f"after {_STEPS} steps a part of a layer is off by {distance / max(length, 1e-30):.2g} of its update"
