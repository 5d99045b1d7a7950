"""SGG's learning-rate factor of every element, in the form that compiles to the fastest loop.

A chain of selections on floating-point numbers vectorizes; a look-up by index or a selection on integers does not and
takes several times as long. Selections are exact: whichever form is taken, the factor is one of the scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LONGEST_CHAIN = 8  # clusters; beyond them a look-up is shorter


def factor_by_label(labels: Tensor, scales: Tensor) -> Tensor:
    """Return `scales[labels]`.

    Args:
        labels: uint8, any shape, each below K.
        scales: `[K]`, in the dtype of the result.
    """
    if len(scales) > _LONGEST_CHAIN:
        return _look_up(labels.to(torch.int32), scales)
    number = labels.to(scales.dtype)
    factor = scales[0].expand_as(number)
    for cluster in range(1, len(scales)):
        factor = torch.where(number > cluster - 0.5, scales[cluster], factor)
    return factor


def factor_by_value(momentum: Tensor, boundaries: Tensor, scales: Tensor, *, absolute: bool = False) -> Tensor:
    """Return the scale of the cluster that every element lies in: `scales[number of boundaries below it]`.

    Args:
        momentum: any shape and dtype. Of 16-bit numbers the float32 value counts.
        boundaries: float32 `[K - 1]`, ascending; +inf where there is no cluster.
        scales: `[K]`, in the dtype of the result.
        absolute: whether the absolute value counts.
    """
    key = momentum.to(scales.dtype)
    key = key.abs() if absolute else key
    edges = boundaries.to(key.dtype)
    if len(scales) > _LONGEST_CHAIN:
        # NaN is above no boundary.
        return _look_up(torch.bucketize(torch.where(key.isnan(), -torch.inf, key), edges, out_int32=True), scales)
    factor = scales[0].expand_as(key)
    for cluster in range(1, len(scales)):
        factor = torch.where(key > edges[cluster - 1], scales[cluster], factor)
    return factor


def _look_up(index: Tensor, scales: Tensor) -> Tensor:
    return scales.index_select(0, index.reshape(-1)).view(index.shape)
