"""Adam and AdamW as a base rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.bases.adam import AdamFactors, Number, adam_direction, adam_factors, adam_moments, ahead
from gradscale.optim.rule import Group, Plan, Slot
from gradscale.option_tables import ADAM
from gradscale.options import Option

_MOMENTS_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class AdamPlan(NamedTuple):
    """Whether AMSGrad is on, and whether the update looks ahead."""

    amsgrad: bool
    nesterov: bool


def moment_slots(param: Tensor, group: Group, keys: Sequence[str]) -> dict[str, Slot]:
    """Return the slots of moments, by default in the parameter's dtype.

    But for float16 in float32: squares of usual gradients are below what float16 can hold.

    Args:
        param: the parameter.
        group: its param group.
        keys: their state keys. All but `exp_avg` are of squares.
    """
    own = torch.float32 if param.dtype == torch.float16 else param.dtype
    dtype = _MOMENTS_DTYPES.get(group["moments_dtype"], own)
    lowest = {"exp_avg": -math.inf}
    return {key: Slot(dtype, param.shape, lowest=lowest.get(key, 0.0), may_be_nan=True) for key in keys}


@dataclass(frozen=True)
class AdamRule:
    """Adam (weight decay enters the gradient) or AdamW (decoupled, Loshchilov and Hutter, arXiv 1711.05101)."""

    decoupled_weight_decay: bool
    momentum: str = "exp_avg"
    takes_trust_ratio: bool = False
    counts_steps: bool = True
    adapts_updates: bool = False
    direction_first: bool = False

    @property
    def options(self) -> Mapping[str, Option]:
        """Those of Adam."""
        return ADAM

    def check(self, group: Group) -> None:
        """All combinations are allowed."""

    def adapts(self, shape: torch.Size, group: Group) -> bool:
        """No layer has a trust ratio."""
        return False

    def direction_reads_gradient(self, group: Group) -> bool:
        """Looking ahead it does; else it reads the moments alone."""
        return bool(group["nesterov"])

    def trust_ratios(
        self, weight_squares: Tensor, grad_squares: Tensor, shapes: Sequence[torch.Size], groups: Sequence[Group]
    ) -> Tensor:
        """There are none."""
        raise NotImplementedError

    def slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        """Both moments, and the running maximum for AMSGrad."""
        return moment_slots(param, group, ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])])

    def plan(self, group: Group) -> Plan:
        """See `AdamPlan`."""
        return AdamPlan(group["amsgrad"], group["nesterov"])

    def constants(self, group: Group, step: float) -> tuple[float, tuple[float, ...]]:
        """See `adam_factors`."""
        betas, eps, nesterov = group["betas"], group["eps"], group["nesterov"]
        rate, factors = adam_factors(step, betas=betas, eps=eps, nesterov=nesterov)
        return rate, tuple(map(float, factors))

    def accumulate(self, grad: Tensor, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan) -> None:
        """See `adam_moments`."""
        adam_moments(grad, state["exp_avg"], state["exp_avg_sq"], AdamFactors(*constants))
        if _known(plan).amsgrad:
            state["max_exp_avg_sq"].copy_(torch.maximum(state["max_exp_avg_sq"], state["exp_avg_sq"]))

    def direction(
        self, grad: Tensor | None, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan
    ) -> Tensor:
        """See `adam_direction`, and `ahead`."""
        plan, factors, momentum = _known(plan), AdamFactors(*constants), state["exp_avg"]
        if plan.nesterov:
            assert grad is not None
            momentum = ahead(momentum, grad, factors)
        return adam_direction(momentum, state["max_exp_avg_sq" if plan.amsgrad else "exp_avg_sq"], factors)


def _known(plan: Plan) -> AdamPlan:
    assert isinstance(plan, AdamPlan)
    return plan
