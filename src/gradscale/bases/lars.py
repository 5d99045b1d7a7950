"""LARS, layer-wise adaptive rate scaling (You, Gitman and Ginsburg, 2017, arXiv 1708.03888, Algorithm 1).

The paper multiplies by the learning rate what enters the buffer; here, as in torch's SGD, it multiplies what leaves it:
a schedule acts on all that the buffer holds. As long as the learning rate stays the same, so does the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.bases.adam import Number
from gradscale.bases.sgd import SGDFactors, sgd_momentum


def lars_trust_ratio(
    weight_squares: Tensor, grad_squares: Tensor, *, trust_coefficient: Number, weight_decay: Number, eps: Number
) -> Tensor:
    """Return the trust ratio of a layer, in the dtype of the sums and without dimensions.

        trust_coefficient ||w|| / (||g|| + weight_decay ||w|| + eps),  and 1 where ||w|| or ||g|| is 0

    NaN where ||g|| is not finite: a ratio of 0 would quietly stop the layer.

    Args:
        weight_squares: sum of w^2 over the whole layer, on all ranks. In float64: float32 holds no squares of numbers
            below 1e-23 or above 1e19.
        grad_squares: sum of g^2 likewise, of the gradient without weight decay.
        trust_coefficient: eta.
        weight_decay: of the layer.
        eps: added to the divisor; the paper has none.
    """
    norm, grad_norm = weight_squares.sqrt(), grad_squares.sqrt()
    divisor = grad_norm + (grad_norm - grad_norm) + weight_decay * norm + eps
    return torch.where((norm == 0) | (grad_norm == 0), 1.0, trust_coefficient * norm / divisor)


def lars_momentum(grad: Tensor, buffer: Tensor, *, ratio: Number, momentum: Number) -> None:
    """Take one gradient into the momentum buffer, in place. The buffer is the update direction.

        b <- momentum b + ratio (g + weight_decay w)

    Args:
        grad: g + weight_decay w, any shape; not changed.
        buffer: b, same shape and dtype; 0 before the first step.
        ratio: see `lars_trust_ratio`.
        momentum: of the buffer.
    """
    sgd_momentum(grad, buffer, SGDFactors(momentum, ratio))
