"""Sums of squares of weights and of their updates, which trust ratios of updates need: nothing is written but two sums.

The update is computed as the pass that applies it computes it, and not kept: it would take as much memory as a moment.
Every element is added in float64, so that how a layer is cut into shards hardly ever shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradscale.bases.adam import Number
from gradscale.bases.lamb import lamb_update
from gradscale.optim.kernels.compiled import recording, with_own_code
from gradscale.optim.kernels.constants import Constants
from gradscale.optim.kernels.eager import ELSEWHERE, ON_CPU
from gradscale.optim.kernels.self_check import probe
from gradscale.optim.rule import BaseRule, Plan, arithmetic_dtype
from gradscale.scalers.dgs import sum_of_squares

_PROBE = 1048583  # elements; see `gradscale.optim.kernels.compiled`
_ROW = 4096  # elements summed by one thread without a break; see `gradscale.optim.kernels.sums`
_CHECKED = (1003, _ROW, 2 * _ROW + 3)  # no row, one, and several with a rest

# By what is computed, device and dtypes. None where it cannot be had.
_CODE: dict[Any, Callable[[list[Any]], Any] | None] = {}


class Stretch(NamedTuple):
    """A stretch of one layer, and what its update is computed from.

    Attributes:
        rule: the base rule.
        plan: its options that change the computation.
        keys: of its moments.
        tensors: the parameter and the moments, of one shape.
        constants: what the direction is multiplied by, the weight decay, and the numbers of the rule.
    """

    rule: BaseRule
    plan: Plan
    keys: tuple[str, ...]
    tensors: list[Tensor]
    constants: Constants


def update_sums(stretch: Stretch, *, compiled: bool) -> list[Tensor]:
    """Return the sum of w^2 and that of (r + weight_decay w)^2, float64 tensors without dimensions.

    Args:
        stretch: what is summed over; not changed.
        compiled: whether to use compiled code, where that can be had. Both give the same within rounding.
    """
    if not all(map(Tensor.is_contiguous, stretch.tensors)):
        return _of_numbers(stretch, stretch.tensors)
    vectors = [tensor.view(-1) for tensor in stretch.tensors]
    code = _code(stretch) if compiled else None
    if code is not None:
        where = arithmetic_dtype(vectors[0]), vectors[0].device
        return list(code([stretch.constants.tensor(where), *vectors]))
    size = ON_CPU if vectors[0].is_cpu else ELSEWHERE
    pieces = zip(*(torch.split(vector, size) for vector in vectors), strict=True)
    sums = [_of_numbers(stretch, piece) for piece in pieces]
    return [torch.stack(column).sum() for column in zip(*sums, strict=True)]


def _of_numbers(stretch: Stretch, tensors: Sequence[Tensor]) -> list[Tensor]:
    rule, plan, keys, _, constants = stretch
    return [sum_of_squares(tensor) for tensor in _weight_and_update(rule, plan, keys, tensors, constants.numbers)]


def _weight_and_update(
    rule: BaseRule, plan: Plan, keys: tuple[str, ...], tensors: Sequence[Tensor], constants: Sequence[Number]
) -> tuple[Tensor, Tensor]:
    """Return w and r + weight_decay w, in the dtype of the arithmetic. See `Stretch`."""
    dtype = arithmetic_dtype(tensors[0])
    weight, *moments = [tensor.to(dtype) for tensor in tensors]
    rate, weight_decay, *own = constants
    direction = rule.direction(None, dict(zip(keys, moments, strict=True)), own, plan)
    return weight, lamb_update(direction, weight, rate=rate, weight_decay=weight_decay)


def _code(stretch: Stretch) -> Callable[[list[Any]], Any] | None:
    tensors = stretch.tensors
    key = (stretch.rule, stretch.plan, stretch.keys, tensors[0].device, *[tensor.dtype for tensor in tensors])
    if key not in _CODE:
        _CODE[key] = _compile(stretch)
    return _CODE[key]


def _compile(stretch: Stretch) -> Callable[[list[Any]], Any] | None:
    # Not the stretch: what is compiled lives on, and would keep its tensors alive.
    rule, plan, keys, tensors, constants = stretch
    device, dtypes, numbers = tensors[0].device, [tensor.dtype for tensor in tensors], len(constants.numbers)
    arithmetic = arithmetic_dtype(tensors[0])
    del stretch, tensors, constants

    def one_pass(constants: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
        length = len(vectors[0]) // _ROW * _ROW
        parts = [[vector[:length].view(-1, _ROW) for vector in vectors], [vector[length:] for vector in vectors]]
        rows, rest = [
            [tensor.to(torch.float64) for tensor in _weight_and_update(rule, plan, keys, part, constants.unbind())]
            for part in parts
        ]
        return tuple(
            (one * one).sum(dim=1).sum() + (other * other).sum() for one, other in zip(rows, rest, strict=True)
        )

    def made_up(length: int) -> list[Tensor]:
        constants = probe(0, arithmetic, torch.Size([numbers]), (length,), device)
        return [constants, *[probe(place, dtype, None, (length,), device) for place, dtype in enumerate(dtypes, 1)]]

    seen: dict[str, Any] = {}
    probes = made_up(_PROBE)
    try:
        torch.compile(with_own_code(one_pass), backend=recording(seen), dynamic=True, fullgraph=True)(*probes)
    except Exception:  # whatever goes wrong in a compiler: the passes that update have said so, or will
        return None
    order = [_place(argument, probes) for argument in seen.get("arguments", [])]
    if not order or None in order:
        return None

    def call(tensors: list[Any]) -> Any:
        known = [*tensors, len(tensors[1])]
        return seen["call"]([known[place] for place in order])

    same = all(
        torch.isclose(one, other, rtol=1e-5, atol=0.0)
        for mine in map(made_up, _CHECKED)
        for one, other in zip(call(mine), one_pass(*mine), strict=True)
    )
    return call if same else None


def _place(argument: Any, probes: list[Tensor]) -> Any:
    for place, known in enumerate(probes):
        if argument is known:
            return place
    return len(probes) if isinstance(argument, int) and argument == _PROBE else None
