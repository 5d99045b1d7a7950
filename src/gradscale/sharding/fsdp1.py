"""FSDP1 (`FullyShardedDataParallel`), with `use_orig_params` either way.

FSDP1 flattens the parameters of a unit into one `FlatParameter`, of which each rank keeps an equal stretch. Optimizers
see either that vector or, with `use_orig_params=True`, one vector per parameter with what lies inside the stretch: of 0
elements, and without a gradient, on the ranks that have nothing of it.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

from gradscale.sharding.view import ADVICE, ParamInfo, Segment, TensorView, UnsupportedShardingError, whole

_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def is_flattened(param: Tensor) -> bool:
    """Whether FSDP1 manages this parameter."""
    return bool(getattr(param, "_fsdp_flattened", False)) or is_vector(param)


def is_vector(param: Tensor) -> bool:
    """Whether FSDP1 laid several parameters into this one, which is all that optimizers see of them."""
    return hasattr(param, "_sharded_size")


def has_replaced(params: Iterable[Tensor]) -> bool:
    """Whether FSDP1 seems to have put vectors of its own in the place of these parameters.

    With `use_orig_params=False` nothing on the parameters tells. But their shapes are among those that it flattened.
    """
    if "torch.distributed.fsdp._flat_param" not in sys.modules:
        return False
    _find_handles()
    vectors: list[Any] = [handle.flat_param for handle in list(_handles) if handle.flat_param._params is None]
    return Counter(param.shape for param in params) <= Counter(shape for flat in vectors for shape in flat._shapes)


def whole_shape(param: Tensor) -> torch.Size:
    """Shape, before it was flattened, of a parameter that FSDP1 manages (with `use_orig_params=True`)."""
    handle = _handle_of(param)
    if handle is None or param is handle.flat_param:
        return param.shape
    return cast(torch.Size, handle.flat_param._shapes[_index_in(handle, param)])


def view(param: Tensor, info: ParamInfo) -> TensorView:
    """View of a `FlatParameter`, or of a parameter inside one.

    Raises:
        UnsupportedShardingError: the parameter belongs to no live FSDP1 module.
    """
    handle = _handle_of(param)
    if handle is None:
        raise UnsupportedShardingError(
            f"{info.name} was flattened by FSDP1, and no live FSDP1 module holds it any more. Make the "
            f"optimizer after wrapping the model, from the wrapped model's parameters. {ADVICE}"
        )
    flat: Any = handle.flat_param  # torch types its attributes nowhere
    if any(extension is not None for extension in flat._param_extensions):
        raise UnsupportedShardingError(
            f"{info.name} is sharded by FSDP1 and by tensor parallel, which is not supported: use FSDP2. {ADVICE}"
        )
    groups = (handle.process_group,) if handle.uses_sharded_strategy and handle.world_size > 1 else ()
    if param is handle.flat_param:
        here = flat._sharded_size.numel()
        # Names of the parameters in it are relative to the unit.
        names = [f"{_unit_of(info.name)}{name}" for name in flat._fqns]
        segments = tuple(
            _segment(name, shape, place, place.offset_in_shard if place.in_shard else 0, groups)
            for name, shape, place in zip(names, flat._shapes, flat._shard_param_infos, strict=True)
        )
    else:
        index = _index_in(handle, param)
        place, shape = flat._shard_param_infos[index], flat._shapes[index]
        if not groups and param.shape == shape:
            return whole(param, _without_wrappers(info.name))
        here = place.numel_in_shard if place.in_shard else 0
        segments = (_segment(_without_wrappers(info.name), shape, place, 0, groups),)
    if param.numel() != here or (groups and handle._training_state.name == "SUMMON_FULL_PARAMS"):
        raise UnsupportedShardingError(
            f"{info.name} holds {param.numel()} elements where FSDP1 keeps {here} of a sharded layer: call step() when "
            "FSDP1 has sharded the parameters again (after backward(), outside of summon_full_params)"
        )
    return TensorView(segments, flat=True)


def _index_in(handle: Any, param: Tensor) -> int:
    return next(i for i, one in enumerate(handle.flat_param._params) if one is param)


def _segment(name: str, shape: torch.Size, place: Any, start: int, groups: tuple[Any, ...]) -> Segment:
    if not place.in_shard:
        return Segment(name, shape, 0, 0, 0, groups)
    return Segment(name, shape, start, place.numel_in_shard, place.intra_param_start_idx, groups)


_handles: weakref.WeakSet[Any] = weakref.WeakSet()


def _handle_of(param: Tensor) -> Any:
    """The live `FlatParamHandle` that holds a parameter.

    Neither the parameters nor the optimizer lead to it (the model does, which an optimizer need not be given), but it
    is a Python object that something keeps alive.
    """
    for search in (None, _find_handles, _find_frozen_handles):
        if search is not None:
            search()
        for handle in list(_handles):
            flat = handle.flat_param
            if param is flat or any(one is param for one in flat._params or ()):
                return handle
    return None


def _find_handles() -> None:
    kind = sys.modules["torch.distributed.fsdp._flat_param"].FlatParamHandle
    for one in gc.get_objects():
        if type(one) is kind:
            _handles.add(one)


def _find_frozen_handles() -> None:
    """Find them where `gc.freeze` has hidden what was there."""
    if gc.get_freeze_count():
        gc.unfreeze()
        _find_handles()
        gc.freeze()


def _without_wrappers(name: str) -> str:
    """A parameter's name in the model as it was before wrapping."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _unit_of(name: str) -> str:
    """What the names of parameters in a `FlatParameter` are relative to: the unit's name, or that of the vector."""
    unit, _, last = _without_wrappers(name).rpartition(".")
    if last == "_flat_param":
        return f"{unit}." if unit else ""
    return f"{name}: "
