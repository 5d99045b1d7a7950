"""What a tensor in `param_groups` holds on this rank, by the engine that put it there.

Engines shard, flatten and replace parameters. Whatever they did, a tensor is seen as segments of layers here; the step
loop and the mathematics know nothing else.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class UnsupportedShardingError(RuntimeError):
    """A tensor is sharded, flattened or replaced by an engine in a way that is not supported."""


ADVICE = "Train on one process, with DDP, FSDP or DeepSpeed ZeRO, or use an optimizer without scaling."


@dataclass(frozen=True)
class ParamInfo:
    """What is known of a parameter, whatever an engine has made of it since.

    Attributes:
        name: its name, or its position where the optimizer was given no names.
        shape: its shape, before any sharding; None of a lazy module's parameter, which has none yet.
    """

    name: str
    shape: torch.Size | None


@dataclass(frozen=True)
class Segment:
    """The part of one layer that a tensor holds on this rank.

    Attributes:
        name: the layer's name.
        shape: shape of the whole layer.
        start: where the part begins in the flattened tensor.
        length: its elements; 0 where the layer is on other ranks only.
        offset: where it begins in the flattened layer; None where its elements are no one stretch of the layer.
        process_groups: sums over all of them, one after the other, count every element of the layer exactly once.
            Empty where this rank holds the whole layer.
    """

    name: str
    shape: torch.Size
    start: int
    length: int
    offset: int | None
    process_groups: tuple[Any, ...] = ()

    @property
    def numel(self) -> int:
        """Elements of the whole layer, on all ranks."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorView:
    """A tensor of `param_groups` as segments of layers.

    Attributes:
        segments: in an order that is the same on every rank; also of layers of which nothing is here. Elements that
            belong to none are padding.
        flat: whether the tensor is a vector that an engine laid several layers, or parts of them, into. Otherwise it is
            one layer, in the layer's own dimensions.
        stepped_apart: for an engine that calls `step()` once for each of its tensors: all of them, each with one of the
            parameters in it. They make one training step together. None where one call is one training step.
        publish: copies the tensor into the model's own parameters. Only needed for a tensor that is updated later than
            in the call of `step()` that the engine made for it.
        agrees: for each segment, whether its values are those of the parameter that it stands for, before the first
            step.
    """

    segments: tuple[Segment, ...]
    flat: bool = False
    stepped_apart: Callable[[], list[tuple[Tensor, Tensor]]] | None = None
    publish: Callable[[], None] | None = None
    agrees: Callable[[], list[bool]] | None = None

    @functools.cached_property
    def process_groups(self) -> tuple[Any, ...]:
        """All process groups over which parts of the tensor are shared."""
        return tuple(dict.fromkeys(group for segment in self.segments for group in segment.process_groups))


def whole(param: Tensor, name: str, process_groups: tuple[Any, ...] = (), local_numel: int | None = None) -> TensorView:
    """View of a tensor that is one layer in its own dimensions, whole or a part of it in shape-preserving form."""
    length = param.numel() if local_numel is None else local_numel
    offset = None if process_groups else 0
    return TensorView((Segment(name, param.shape, 0, length, offset, process_groups),))
