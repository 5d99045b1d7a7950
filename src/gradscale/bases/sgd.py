"""SGD with momentum, dampening and Nesterov's look-ahead, in the arithmetic of `torch.optim.SGD`.

Every factor may be a number or a tensor of no dimensions; for why, see `gradscale.bases.adam`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gradscale.bases.adam import Number


class SGDFactors(NamedTuple):
    """What the update needs of one step.

    Attributes:
        momentum: mu, what is kept of the buffer.
        grad_weight: what is taken of the gradient: 1 - dampening, but all of the first one.
    """

    momentum: Number
    grad_weight: Number


def sgd_factors(step: float, *, momentum: float, dampening: float) -> SGDFactors:
    """Return the factors of step t (from 1). Without momentum there is nothing to dampen, as in torch."""
    undampened = step <= 1 or momentum == 0
    return SGDFactors(momentum, 1.0 if undampened else 1 - dampening)


def sgd_momentum(grad: Tensor, buffer: Tensor, factors: SGDFactors) -> None:
    """Take one gradient into the momentum buffer, in place.

        b <- mu b + (1 - dampening) g,  and b <- g at the first step

    Bit for bit that of torch in float32 where dampening is 0. Where it is not, torch may round the product and the sum
    at once on a CPU, and here each is rounded.

    Args:
        grad: gradient, any shape, with weight decay in it; not changed.
        buffer: b, same shape and dtype; 0 before the first step.
        factors: those of the step.
    """
    buffer.mul_(factors.momentum).add_(grad * factors.grad_weight)


def sgd_direction(grad: Tensor | None, buffer: Tensor, factors: SGDFactors, *, nesterov: bool) -> Tensor:
    """Return the update direction: b, or with Nesterov's momentum (in torch's form) g + mu b.

    Args:
        grad: gradient, any shape, with weight decay in it; read with Nesterov's momentum only, and may be None without.
        buffer: b, after this gradient was taken in.
        factors: those of the step.
        nesterov: whether to look ahead.

    Returns:
        A new tensor of the same shape; neither argument is changed.
    """
    if not nesterov:
        return buffer.clone()
    assert grad is not None
    return (buffer * factors.momentum).add_(grad)
