"""Adam: moments and update direction (Kingma and Ba, 2015, arXiv 1412.6980, Algorithm 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def adam_moments(grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, betas: tuple[float, float]) -> None:
    """Take one gradient into both moments.

        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2

    Moments held in bfloat16 or float16 are updated in float32 and rounded once.

    Args:
        grad: gradient, any shape, in the dtype of the arithmetic.
        exp_avg: first moment, same shape; changed in place.
        exp_avg_sq: second moment, same shape; changed in place.
        betas: decay rates of the two moments.
    """
    beta1, beta2 = betas
    if exp_avg.dtype == grad.dtype:
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    else:
        exp_avg.copy_(exp_avg.to(grad.dtype).lerp_(grad, 1 - beta1))
        exp_avg_sq.copy_(exp_avg_sq.to(grad.dtype).mul_(beta2).addcmul_(grad, grad, value=1 - beta2))


def adam_direction(
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: float,
    betas: tuple[float, float],
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return the update direction, to be subtracted from the parameter after scaling by the learning rate.

        (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        exp_avg: first moment, any shape.
        exp_avg_sq: second moment (or, for AMSGrad, its running maximum), same shape.
        step: t, updates of this tensor so far, this one included.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        dtype: dtype of the arithmetic and of the result.

    Returns:
        A new tensor of the same shape; the moments are not changed.
    """
    bias_correction1 = 1 - betas[0] ** step
    bias_correction2 = 1 - betas[1] ** step
    denom = exp_avg_sq.to(dtype).sqrt().div_(math.sqrt(bias_correction2)).add_(eps).mul_(bias_correction1)
    return exp_avg.to(dtype).div(denom)
