"""Tensors of `param_groups` as strips, each of which has one factor (or none) and is updated in one pass.

Strips are cut anew at every step and not kept: engines and users move tensors between devices, or free them, between
two steps, and what is kept would keep their memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from gradscale.optim.members import Member, local_state
from gradscale.optim.rule import State
from gradscale.optim.static_blocks import with_scales_of_rows
from gradscale.sharding.dtensor import is_dtensor, local_part


class Strip(NamedTuple):
    """A tensor, or the part of one layer in a vector that an engine laid several into.

    Attributes:
        param: the parameter.
        grad: its gradient, in the shape of `param`; None where it is not needed.
        elementwise: state with one number per element, in the shape of `param`.
        per_layer: the scaler's state of its layer, and what is known of it in this step alone.
        row: which of the member's scaled layers it is, or is part of; None for what is not scaled.
        contiguous: whether the elements of all these lie one after the other in memory.
        adapted: which of the tensor's segments it is part of, if that layer's update has a trust ratio; else None.
        rated: whether its layer has a learning rate of its own.
    """

    param: Tensor
    grad: Tensor | None
    elementwise: dict[str, Tensor]
    per_layer: dict[str, Tensor]
    row: int | None
    contiguous: bool
    adapted: int | None = None
    rated: bool = False


def strips_of(member: Member, state: State, *, with_grad: bool) -> Iterator[Strip]:
    """Cut a member into strips, which share memory with it.

    Args:
        member: the member.
        state: its state; that of a DTensor may hold DTensors.
        with_grad: whether the strips need their gradients.
    """
    param, grad = member.param, member.param.grad if with_grad else None
    if is_dtensor(param):
        param, grad = local_part(param), None if grad is None else local_part(grad)
        state = local_state(state)
    if param.numel() == 0:
        return
    if member.scaled:
        state = with_scales_of_rows(state, param.shape, member.group)
    contiguous = param.is_contiguous()
    if grad is not None and contiguous and not grad.is_contiguous():
        grad = grad.contiguous()
    elementwise, per_layer, shape = {}, {}, param.shape
    for key, value in state.items():
        if key == "step" or not isinstance(value, Tensor):
            continue
        if value.shape == shape:
            elementwise[key] = value
            contiguous = contiguous and value.is_contiguous()
        else:
            per_layer[key] = value
    if member.view.flat:
        yield from _of_vector(member, Strip(param, grad, elementwise, per_layer, None, contiguous))
    else:
        row, adapted = 0 if member.scaled else None, 0 if member.adapted else None
        yield Strip(param, grad, elementwise, per_layer, row, contiguous, adapted, bool(member.rated))


def _of_vector(member: Member, vector: Strip) -> Iterator[Strip]:
    """Strips of a flat tensor: segments that are scaled, have a trust ratio or a rate, and what lies between them."""
    position = 0
    rows = {segment.start: (segment.length, row) for row, segment in enumerate(member.scaled) if segment.length}
    adapted = [(place, member.view.segments[place]) for place in member.adapted]
    places = {segment.start: (segment.length, place) for place, segment in adapted if segment.length}
    rated = {one.start: one.length for one in map(member.view.segments.__getitem__, member.rated) if one.length}
    for start in sorted({*rows, *places, *rated}):
        length, row = rows.get(start, (rated.get(start, 0), None))
        length, place = places.get(start, (length, None))
        if position < start:
            yield _piece(vector, slice(position, start), None)
        position = start + length
        yield _piece(vector, slice(start, position), row, place, start in rated)
    if position < vector.param.numel():
        yield _piece(vector, slice(position, vector.param.numel()), None)


def _piece(vector: Strip, place: slice, row: int | None, adapted: int | None = None, rated: bool = False) -> Strip:
    return Strip(
        vector.param[place],
        None if vector.grad is None else vector.grad[place],
        {key: tensor[place] for key, tensor in vector.elementwise.items()},
        {} if row is None else {key: tensor[row] for key, tensor in vector.per_layer.items()},
        row=row,
        contiguous=vector.contiguous,
        adapted=adapted,
        rated=rated,
    )
