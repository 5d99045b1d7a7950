"""Adam and AdamW as a base rule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gradscale.bases.adam import adam_direction, adam_moments
from gradscale.optim.rule import Group, Slot, State
from gradscale.option_tables import ADAM
from gradscale.options import Option


class AdamRule:
    """Adam (weight decay enters the gradient) or AdamW (decoupled, Loshchilov and Hutter, arXiv 1711.05101)."""

    options: Mapping[str, Option] = ADAM
    momentum: str = "exp_avg"

    def __init__(self, *, decoupled_weight_decay: bool) -> None:
        self.decoupled_weight_decay = decoupled_weight_decay

    def slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        """Both moments, and the running maximum for AMSGrad, in the parameter's dtype.

        But for float16 in float32: squares of usual gradients are below what float16 can hold.
        """
        keys = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
        dtype = torch.float32 if param.dtype == torch.float16 else param.dtype
        lowest = {"exp_avg": -math.inf}
        return {key: Slot(dtype, param.shape, lowest=lowest.get(key, 0.0), may_be_nan=True) for key in keys}

    def accumulate(self, grad: Tensor, state: State, group: Group) -> None:
        """See `adam_moments`."""
        adam_moments(grad, state["exp_avg"], state["exp_avg_sq"], betas=group["betas"])
        if group["amsgrad"]:
            torch.maximum(state["max_exp_avg_sq"], state["exp_avg_sq"], out=state["max_exp_avg_sq"])

    def direction(self, state: State, group: Group, dtype: torch.dtype) -> Tensor:
        """See `adam_direction`."""
        return adam_direction(
            state["exp_avg"],
            state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"],
            step=float(state["step"]),
            betas=group["betas"],
            eps=group["eps"],
            dtype=dtype,
        )
