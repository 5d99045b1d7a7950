"""Lion, evolved sign momentum (Chen et al., 2023, arXiv 2302.06675, Algorithm 2).

The direction mixes the gradient into the momentum with one weight, and the momentum then keeps it with another: so the
direction is that of the momentum before the gradient. Factors may be numbers or tensors of no dimensions; for why, see
`gradscale.bases.adam`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gradscale.bases.adam import Number


class LionFactors(NamedTuple):
    """What the update needs.

    Attributes:
        direction_weight: 1 - beta1, of the gradient in the direction.
        grad_weight: 1 - beta2, of the gradient in the momentum.
    """

    direction_weight: Number
    grad_weight: Number


def lion_direction(grad: Tensor, exp_avg: Tensor, factors: LionFactors) -> Tensor:
    """Return the update direction, whose elements are -1, 0 and 1.

        sign(beta1 m + (1 - beta1) g)

    Where that is not finite the direction is NaN: the sign of NaN is 0 in torch, which would hide a momentum that is
    lost.

    Args:
        grad: gradient, any shape.
        exp_avg: momentum before this gradient is taken in, same shape and dtype.
        factors: those of the step.

    Returns:
        A new tensor of the same shape; neither argument is changed.
    """
    mixed = (grad - exp_avg).mul_(factors.direction_weight).add_(exp_avg)
    return mixed.sign().add_(mixed - mixed)


def lion_momentum(grad: Tensor, exp_avg: Tensor, factors: LionFactors) -> None:
    """Take one gradient into the momentum, in place.

        m <- m + (1 - beta2) (g - m)

    Args:
        grad: gradient, any shape; not changed.
        exp_avg: momentum, same shape and dtype.
        factors: those of the step.
    """
    # Rounded after each operation, as generated code does it, or labels would differ at a boundary.
    exp_avg.add_((grad - exp_avg).mul_(factors.grad_weight))
