"""DGS, dynamic gradient scaling (Mann, 2024, IJRASET 12(5), doi 10.22214/ijraset.2024.62669), as pure functions.

    I_i  importance of element i: |g_i| or a running mean of it             (section III.B, step 1)
    G    sigma + sum_k gamma_k I_k over all parameters of the optimizer      (section III.A)
    M    mean of I over the element's layer

Whatever is called a number here may be a tensor of no dimensions as well: compiled code takes tensors, because a number
would be compiled in, and whether a step resets is known on the device only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gradscale.bases.adam import Number
from gradscale.scalers.pieces import pieces

Form = Literal["equation", "importance", "full", "normalized"]

LEVEL_DECAY = 0.99  # of the level that spikes are compared with: it remembers some hundred steps
# Elements summed at a time: on a CPU what fits into its cache, elsewhere what keeps it busy.
_PIECE_ON_CPU, _PIECE = 1 << 17, 1 << 24


def take_importance(grad: Tensor, average: Tensor, decay: Number, keep: Number) -> None:
    """Take one gradient into the running sum A of which the importance is I = A / W, in place.

        A <- keep decay A + (1 - decay) |g|

    The past is made to weigh less before the gradient is taken in, and in W too (see `take_weight`). So a reset never
    makes the importance itself small, which would make the rates jump. With W as small, all of I is |g| after
    keep = 0. What is not finite in A stays so: its parameter is lost as well.

    Args:
        grad: gradient, any shape; not changed.
        average: A, same shape, in the dtype of the arithmetic; 0 before the first gradient.
        decay: rho, in (0, 1).
        keep: 1, or at a reset how much the past weighs afterwards; 0 for a hard reset.
    """
    average.mul_(decay * keep).add_(grad.abs().mul_(1 - decay))


def take_weight(weight: Number, decay: Number, keep: Number) -> Number:
    """Return the new W, weight of all gradients in the running sum, which corrects its bias towards 0.

        W <- keep decay W + (1 - decay)

    Args:
        weight: W, 0 before the first gradient.
        decay: see `take_importance`.
        keep: see `take_importance`.
    """
    return keep * decay * weight + (1 - decay)


def sum_of_importance(grad: Tensor) -> Tensor:
    """Return the sum of |g|, float64 without dimensions.

    Every element is added in float64, and only a piece of them is held in float64 at a time. A float64 sum takes in a
    float32 number of up to 2^29 times less than itself without rounding, so two ways to cut a tensor into shards differ
    in the last bits of float64, and hardly ever once that is rounded to float32.

    Args:
        grad: gradient, or the running sum A of `take_importance`; any shape, layout and dtype, and not changed.
    """
    return _in_pieces(grad, lambda piece: piece.abs().sum(dtype=torch.float64))


def sum_of_squares(tensor: Tensor) -> Tensor:
    """Return the sum of squares, float64 without dimensions; see `sum_of_importance`."""
    return _in_pieces(tensor, lambda piece: piece.to(torch.float64).square().sum())


def collective_importance(total: Number, sigma: Number) -> Number:
    """Return G, the divisor of section III.A.

    Args:
        total: sum over all parameters, on all ranks, of gamma_k I_k.
        sigma: above 0, or G were 0 where all gradients are.
    """
    return sigma + total


def dgs_factor(
    form: Form,
    importance: Tensor,
    *,
    collective: Number,
    mean: Number,
    beta: Number,
    eps: Number,
    bounds: tuple[float, float] | tuple[Tensor, Tensor],
    rate: Number,
    weight: Number = 1.0,
) -> Number:
    """Return what every element's direction is multiplied by: the learning rate times the factor of its importance.

        equation     beta / G                                 (section III.A, with alpha_i the learning rate)
        importance   1 / (I + eps)                            (section III.B, steps 2 and 3)
        full         beta / ((I + eps) G)                     (both: alpha_i is the adaptive rate)
        normalized   clamp(M / (I + eps M), low, high)        (and 1 where M is 0: there is no gradient)

    inf and NaN are never hidden: where G or M is not finite, if only because it was too large for its dtype, the factor
    is NaN. As a divisor, an infinite G would quietly stop all parameters.

    Args:
        form: which of these.
        importance: I, or W times I, which is what `take_importance` keeps; any shape. Not changed.
        collective: G; read by "equation" and "full".
        mean: M, in the unit of I; read by "normalized".
        beta: overall scale; read by "equation" and "full".
        eps: keeps the rates of elements without gradient finite; in the unit of I, but for "normalized" a share of M.
        bounds: lowest and highest factor, both finite, 1 between them; read by "normalized".
        rate: the learning rate.
        weight: W if `importance` is W times I: scalars are multiplied by it, instead of dividing every element.

    Returns:
        A new tensor in the shape and dtype of `importance`; for "equation" one number for all elements.
    """
    # The few scalars first: each form is left with a sum and a quotient per element (and what clamps).
    if form == "equation":
        return rate * beta / _nan_unless_finite(collective)
    if form == "importance":
        return torch.div(_scalar(rate * weight, importance.dtype), importance + eps * weight)
    if form == "full":
        scaled_rate = rate * beta * weight / _nan_unless_finite(collective)
        return torch.div(_scalar(scaled_rate, importance.dtype), importance + eps * weight)
    if form == "normalized":
        # In the dtype of the importance: a mean that is 0 in it only would make the quotient 0 / 0.
        scaled_mean = _scalar(mean * weight, importance.dtype)
        zero = scaled_mean == 0  # adds 1 above and below the line, where there is nothing but 0 then
        relative = torch.div(scaled_mean + zero, importance + (eps * scaled_mean + zero))
        # The rate comes last: it would take the mean of tiny gradients out of float32's range.
        return torch.clamp(relative, *bounds).mul_(rate)
    raise ValueError(f"form={form!r}: not one of 'equation', 'importance', 'full', 'normalized'")


def spikes(mean: Tensor, level: Tensor, level_weight: Tensor, threshold: Number) -> Tensor:
    """Return whether today's gradients are a spike, as a bool tensor without dimensions.

        mean > threshold level / level_weight

    Args:
        mean: mean of |g| over the model, without dimensions. inf and NaN are no spikes: nothing should come of them.
        level: running sum of earlier means, see `take_level`; best in float64, and so are the others.
        level_weight: its weight. Where it is 0, nothing is a spike.
        threshold: above 1.
    """
    return (mean * level_weight > threshold * level) & mean.isfinite()


def take_level(
    mean: Tensor, level: Tensor, level_weight: Tensor, threshold: Number, decay: Number = LEVEL_DECAY
) -> tuple[Tensor, Tensor]:
    """Take today's mean of |g| into the level that later ones are compared with. Ask `spikes` before.

        level <- decay level + (1 - decay) x;   level_weight <- decay level_weight + (1 - decay)

    x is the mean, but of a spike only threshold times the level: one spike does not raise the level much, and a lasting
    shift is followed. inf, NaN and 0 are left out: a level of 0 would call everything a spike, and clip it to 0 for
    ever.

    Args:
        mean: see `spikes`.
        level: see `spikes`; 0 before the first step, and not changed.
        level_weight: see `spikes`; likewise.
        threshold: see `spikes`.
        decay: of the level.

    Returns:
        The new level and its weight.
    """
    entering = torch.where(spikes(mean, level, level_weight, threshold), threshold * level / level_weight, mean)
    counts = mean.isfinite() & (mean > 0)
    return (
        torch.where(counts, decay * level + (1 - decay) * entering, level),
        torch.where(counts, decay * level_weight + (1 - decay), level_weight),
    )


def _in_pieces(tensor: Tensor, sum_of_piece: Callable[[Tensor], Tensor]) -> Tensor:
    # A piece at a time: torch makes a float64 copy of all that it is given.
    size = _PIECE_ON_CPU if tensor.device.type == "cpu" else _PIECE
    if tensor.numel() <= size:
        return sum_of_piece(tensor)
    return torch.stack([sum_of_piece(piece) for (piece,) in pieces(size, tensor)]).sum()


def _nan_unless_finite(number: Number) -> Number:
    return number + (number - number)


def _scalar(number: Number, dtype: torch.dtype) -> Tensor:
    # Of a number divided by a tensor torch makes a reciprocal and a product, which rounds twice, and coarsely below
    # 1e-38. Without dimensions it may stay on the CPU, beside tensors of any device.
    return number.to(dtype) if isinstance(number, Tensor) else torch.tensor(number, dtype=dtype)
