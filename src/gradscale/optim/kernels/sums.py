"""Sums over a gradient that a step needs before it moves anything: one pass over the memory, compiled where passes are.

Every element is added in float64; see `gradscale.scalers.dgs.sum_of_importance` for why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradscale.optim.kernels.compiled import recording, with_own_code
from gradscale.scalers.dgs import sum_of_importance, sum_of_squares

_PROBE = 1048583  # elements; see `gradscale.optim.kernels.compiled`
_ROW = 4096  # elements summed by one thread without a break: the compiler makes two threads' work of rows only
_CHECKED = (1003, _ROW, 2 * _ROW + 3)  # no row, one, and several with a rest

# By device, dtypes and number of tensors. None where it cannot be had.
_CODE: dict[Any, Callable[[list[Any]], Any] | None] = {}


def sums_eagerly(tensors: list[Tensor]) -> list[Tensor]:
    """Return the sum of |gradient|, and with a weight besides also the sums of squares of the two.

    Args:
        tensors: the gradient, and for the sums of squares the weight; one shape, any layout.

    Returns:
        1 or 3 float64 tensors without dimensions.
    """
    grad, *weights = tensors
    return [sum_of_importance(grad), *[sum_of_squares(tensor) for tensor in (*weights, *([grad] if weights else []))]]


def sums_compiled(tensors: list[Tensor]) -> list[Tensor]:
    """Return the same; tensors that are not contiguous, and all where no compiler works, are summed eagerly."""
    if not all(map(Tensor.is_contiguous, tensors)):
        return sums_eagerly(tensors)
    key = (tensors[0].device, *[tensor.dtype for tensor in tensors])
    if key not in _CODE:
        _CODE[key] = _compile(tensors)
    code = _CODE[key]
    if code is None:
        return sums_eagerly(tensors)
    return list(code([tensor.view(-1) for tensor in tensors]))


def _compile(tensors: list[Tensor]) -> Callable[[list[Tensor]], Any] | None:
    def one_pass(*vectors: Tensor) -> tuple[Tensor, ...]:
        length = len(vectors[0]) // _ROW * _ROW
        grad, *weights = [
            (vector[:length].view(-1, _ROW).to(torch.float64), vector[length:].to(torch.float64)) for vector in vectors
        ]
        total = _total(*[part.abs() for part in grad])
        return (
            (total, *[_total(*[part * part for part in parts]) for parts in (*weights, grad)]) if weights else (total,)
        )

    def made_up(length: int) -> list[Tensor]:
        numbers = torch.arange(length, device=tensors[0].device)
        return [(numbers * 37 % (101 + place) - 50).to(tensor.dtype) for place, tensor in enumerate(tensors)]

    seen: dict[str, Any] = {}
    probes = made_up(_PROBE)
    try:
        torch.compile(with_own_code(one_pass), backend=recording(seen), dynamic=True, fullgraph=True)(*probes)
    except Exception:  # whatever goes wrong in a compiler: the pass that updates has said so, or will
        return None
    order = [_place(argument, probes) for argument in seen.get("arguments", [])]
    if not order or None in order:
        return None

    def call(vectors: list[Tensor]) -> Any:
        known = [*vectors, len(vectors[0])]
        return seen["call"]([known[place] for place in order])

    same = all(
        torch.isclose(one, other, rtol=1e-12, atol=0.0)
        for mine in map(made_up, _CHECKED)
        for one, other in zip(call(mine), sums_eagerly(mine), strict=True)
    )
    return call if same else None


def _total(rows: Tensor, rest: Tensor) -> Tensor:
    return rows.sum(dim=1).sum() + rest.sum()


def _place(argument: Any, probes: list[Tensor]) -> Any:
    for place, probe in enumerate(probes):
        if argument is probe:
            return place
    return len(probes) if isinstance(argument, int) and argument == _PROBE else None
