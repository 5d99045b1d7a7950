"""Putting a factor on what a base optimizer adds to a tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.adapter.one_tensor import Group, OneTensor
from gradscale.adapter.traits import Traits, with_weight_decay
from gradscale.optim.rule import arithmetic_dtype
from gradscale.scalers.pieces import pieces
from gradscale.sharding.dtensor import local_part

_PIECE = 1 << 20  # elements combined at a time
Factor = Tensor | float


@dataclass(frozen=True)
class Rescaled:
    """The update of one tensor.

        w <- (1 - decay) w + factor u        u: what the base adds to w, without decoupled weight decay

    What the base adds is measured where it can be seen exactly. A base that does not read the weights is shown a tensor
    of zeros, which it turns into u with all of its digits; weight decay is done here. For the others u is the
    difference between the weights after and before, which has lost what rounding to the weights has taken.

    Attributes:
        factor: gives the factor: a number, or a tensor like the part of the weights that is here. It is called once,
            before or after the base's step. None leaves the update as it is, bit for bit.
        after: whether after it.
    """

    factor: Callable[[], Factor] | None
    after: bool = False

    def update(self, alone: OneTensor, group: Group, traits: Traits, param: Tensor, grad: Tensor) -> None:
        """Update one tensor.

        Args:
            alone: what steps the base.
            group: the param group.
            traits: what is known of the base.
            param: the tensor.
            grad: its gradient.
        """
        if self.factor is None:
            alone.step(group, param, grad)
            return
        factor = None if self.after else self.factor()
        local = local_part(param)
        before = local.clone()
        decay = float(group.get("weight_decay") or 0.0)
        shows_zeros = not traits.reads_weights and (traits.weight_decay != "own" or decay == 0)
        of_rate = float(group.get("lr") or 0.0) * decay
        shares = {"fixed": decay, "decoupled": of_rate, "after": of_rate, "divided": of_rate / (1 + of_rate)}
        share, last = shares.get(traits.weight_decay, 0.0), traits.weight_decay in ("after", "divided")
        try:
            if shows_zeros:
                if decay and traits.weight_decay == "coupled":
                    grad = with_weight_decay(grad, param, decay, group)
                local.zero_()
                alone.step(group, param, grad, **({"weight_decay": 0.0} if decay else {}))
            else:
                alone.step(group, param, grad)
            factor = self.factor() if factor is None else factor
        except BaseException:
            local.copy_(before)
            raise
        _combine(local, before, factor, share, is_update=shows_zeros, decays_update=last)


def _combine(
    local: Tensor, before: Tensor, factor: Factor, share: float, *, is_update: bool, decays_update: bool
) -> None:
    """Write the new weights.

    Args:
        local: what the base left; changed.
        before: the weights before.
        factor: the factor.
        share: what decoupled weight decay takes of the weights.
        is_update: whether `local` is the update, and not the weights with it.
        decays_update: whether weight decay comes after the update, and so takes of this as well.
    """
    dtype = arithmetic_dtype(local)
    tensors = [local, before, *([factor] if isinstance(factor, Tensor) and factor.dim() else [])]
    for piece, old, *factors in pieces(_PIECE, *tensors):
        number = factors[0].to(dtype) if factors else factor
        left, kept = piece.to(dtype), old.to(dtype)
        if is_update:
            new = kept * (1 - share) + left * number if share and not decays_update else kept + left * number
            if share and decays_update:
                new.mul_(1 - share)
        else:
            # In this form a factor of 1 changes nothing at all.
            new = left + (left - kept * (1 - share)) * (number - 1)
        piece.copy_(new)
    torch.autograd.graph.increment_version(local)
