"""LAMB: Adam's direction with a trust ratio per layer (You et al., 2020, arXiv 1904.00962, Algorithm 2).

    r = m_hat / (sqrt(v_hat) + eps)
    w <- w - lr ratio (r + weight_decay w),   ratio = ||w|| / ||r + weight_decay w||

Moments and direction are Adam's, see `gradscale.bases.adam`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.bases.adam import Number


def lamb_update(direction: Tensor, weight: Tensor, *, rate: Number, weight_decay: Number) -> Tensor:
    """Return r + weight_decay w, whose norm the trust ratio divides by, in place of the direction.

    Args:
        direction: see `gradscale.bases.adam.adam_direction`, any shape; changed.
        weight: w, same shape and dtype.
        rate: what the direction is multiplied by to be r, see `gradscale.bases.adam.adam_factors`.
        weight_decay: of the layer.
    """
    return direction.mul_(rate).add_(weight * weight_decay)


def lamb_trust_ratio(weight_squares: Tensor, update_squares: Tensor) -> Tensor:
    """Return the trust ratio of layers, in the dtype of the sums.

        ||w|| / ||r + weight_decay w||,  and 1 where either is 0

    NaN where the update is not finite: a ratio of 0 would quietly stop the layer.

    Args:
        weight_squares: sums of w^2 over whole layers, on all ranks, any shape. In float64: float32 holds no squares of
            numbers below 1e-23 or above 1e19.
        update_squares: sums of (r + weight_decay w)^2 likewise.
    """
    norm, update_norm = weight_squares.sqrt(), update_squares.sqrt()
    divisor = update_norm + (update_norm - update_norm)
    return torch.where((norm == 0) | (update_norm == 0), 1.0, norm / divisor)
