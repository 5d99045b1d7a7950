"""SGG's learning-rate factor of every element, in the forms that run fastest.

Compiled, a chain of selections on floating-point numbers becomes vector instructions; a look-up by index, or a
selection on integers, does not and takes several times as long. Operation by operation it is the other way round:
`torch.where` takes 40 times as long as a product, a look-up 8 times. Both are exact, so both give the same: one of the
scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LONGEST_CHAIN = 8  # clusters; beyond them a look-up is faster compiled as well


def factor_by_label(labels: Tensor, scales: Tensor) -> Tensor:
    """Return `scales[labels]`.

    Args:
        labels: uint8, any shape, each below K.
        scales: `[K]`, in the dtype of the result.
    """
    if not torch.compiler.is_compiling() or len(scales) > _LONGEST_CHAIN:
        return _look_up(labels, scales)
    number = labels.to(scales.dtype)
    factor = scales[0].expand_as(number)
    for cluster in range(1, len(scales)):
        factor = torch.where(number > cluster - 0.5, scales[cluster], factor)
    return factor


def factor_by_value(momentum: Tensor, boundaries: Tensor, scales: Tensor, *, absolute: bool = False) -> Tensor:
    """Return the scale of the cluster that every element lies in: `scales[number of boundaries below it]`.

    Args:
        momentum: any shape and dtype. Of 16-bit numbers the float32 value counts. NaN is above no boundary.
        boundaries: float32 `[K - 1]`, ascending; +inf where there is no cluster.
        scales: `[K]`, in the dtype of the result.
        absolute: whether the absolute value counts.
    """
    if not torch.compiler.is_compiling() or len(scales) > _LONGEST_CHAIN:
        return _look_up(cluster_numbers(momentum, boundaries, scales.dtype, absolute=absolute), scales)
    key, edges = _key_and_edges(momentum, boundaries, scales.dtype, absolute)
    factor = scales[0].expand_as(key)
    for cluster, edge in enumerate(edges, start=1):
        factor = torch.where(key > edge, scales[cluster], factor)
    return factor


def cluster_numbers(momentum: Tensor, boundaries: Tensor, dtype: torch.dtype, *, absolute: bool = False) -> Tensor:
    """Return the number of boundaries below every element, as floating-point numbers.

    Args:
        momentum: see `factor_by_value`.
        boundaries: see `factor_by_value`.
        dtype: of the comparison and of the result.
        absolute: whether the absolute value counts.
    """
    key, (first, *others) = _key_and_edges(momentum, boundaries, dtype, absolute)
    if torch.compiler.is_compiling():
        numbers = (key > first).to(dtype)
        for edge in others:
            numbers = numbers + (key > edge).to(dtype)
        return numbers
    # A difference is 0 only of equal numbers, so its sign tells as exactly as a comparison, and faster.
    numbers = (key - first).sign_().clamp_(min=0)
    for edge in others:
        numbers += (key - edge).sign_().clamp_(min=0)
    return numbers


def _key_and_edges(
    momentum: Tensor, boundaries: Tensor, dtype: torch.dtype, absolute: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    key = momentum.to(dtype)
    return key.abs() if absolute else key, boundaries.to(dtype).unbind()


def _look_up(labels: Tensor, scales: Tensor) -> Tensor:
    return scales.index_select(0, labels.to(torch.int32).reshape(-1)).view(labels.shape)
