"""Adam: moments and update direction (Kingma and Ba, 2015, arXiv 1412.6980, Algorithm 1).

Every factor may be a number or a tensor of no dimensions. Compiled code takes tensors: a number would be compiled in,
and every step brings another.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

Number = float | Tensor


class AdamFactors(NamedTuple):
    """What the update needs of one step t.

    Attributes:
        beta1: decay rate of the first moment.
        grad_weight: 1 - beta1.
        beta2: decay rate of the second moment.
        square_weight: 1 - beta2.
        eps: sqrt(1 - beta2^t) eps, added to the root of the second moment.
    """

    beta1: Number
    grad_weight: Number
    beta2: Number
    square_weight: Number
    eps: Number


def adam_factors(
    step: float, *, betas: tuple[float, float], eps: float, nesterov: bool = False
) -> tuple[float, AdamFactors]:
    """Return what the learning rate is multiplied by, and the factors of step t (from 1).

    Both corrections are in the rate, sqrt(1 - beta2^t) / (1 - beta1^t), as the paper has it before section 2.1. The
    weights of the gradients in `ahead` sum up to 1 - beta1^(t + 1).
    """
    beta1, beta2 = betas
    correction = math.sqrt(1 - beta2**step)
    rate = correction / (1 - beta1 ** (step + 1 if nesterov else step))
    return rate, AdamFactors(beta1, 1 - beta1, beta2, 1 - beta2, correction * eps)


def adam_moments(grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, factors: AdamFactors) -> None:
    """Take one gradient into both moments, in place.

        m <- m + (1 - beta1) (g - m)
        v <- beta2 v + (1 - beta2) g^2

    Args:
        grad: gradient, any shape; not changed.
        exp_avg: first moment, same shape and dtype.
        exp_avg_sq: second moment, same shape and dtype.
        factors: those of the step.
    """
    weight = factors.square_weight
    # Rounded after each operation, as generated code does it: lerp_ would not, and labels would differ at a boundary.
    exp_avg.add_((grad - exp_avg).mul_(factors.grad_weight))
    exp_avg_sq.mul_(factors.beta2)
    if isinstance(weight, Tensor):  # addcmul_ takes numbers alone
        exp_avg_sq.add_((grad * weight).mul_(grad))
    else:
        exp_avg_sq.addcmul_(grad, grad, value=weight)


def ahead(exp_avg: Tensor, grad: Tensor, factors: AdamFactors) -> Tensor:
    """Return the first moment as it would be if the gradient came again.

        beta1 m + (1 - beta1) g

    Dozat, 2016, "Incorporating Nesterov Momentum into Adam", Algorithm 8, with the same beta1 in every step.

    Args:
        exp_avg: first moment, any shape, which has taken the gradient in.
        grad: gradient, same shape and dtype.
        factors: those of the step.

    Returns:
        A new tensor; neither argument is changed.
    """
    return (exp_avg * factors.beta1).add_(grad * factors.grad_weight)


def adam_direction(exp_avg: Tensor, exp_avg_sq: Tensor, factors: AdamFactors) -> Tensor:
    """Return the update direction, less the corrections, which belong to the learning rate.

        m / (sqrt(v) + sqrt(1 - beta2^t) eps)

    Args:
        exp_avg: first moment, any shape.
        exp_avg_sq: second moment (or, for AMSGrad, its running maximum), same shape and dtype.
        factors: those of the step.

    Returns:
        A new tensor of the same shape; the moments are not changed.
    """
    return torch.div(exp_avg, exp_avg_sq.sqrt().add_(factors.eps))
