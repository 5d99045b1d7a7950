"""One pass: gradient into moments, base rule, scaler's factor, weight decay and the write of the parameter.

Written once in torch operations on one stretch. Eagerly it runs on pieces that fit a cache; compiled, the operations
become one loop that reads and writes every element once.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from gradscale.bases.adam import Number
from gradscale.optim.rule import BaseRule, Group, Plan, Scaler, arithmetic_dtype
from gradscale.scalers.pieces import pieces

Part = Literal["whole", "accumulate", "apply"]
COMPENSATION = "compensation"  # state key of what rounding has taken from a 16-bit parameter so far

RELABEL = "relabel"  # key of a tensor of one step alone: whether the layer has just been grouped
NUMBERS = "step_numbers"  # likewise: the layer's trust ratio, and what the scaler found in all gradients
RATIO = "update_ratio"  # likewise: the trust ratio of the layer's update

_AHEAD = 1 << 18  # elements whose momentum is looked ahead at a time


@dataclass(frozen=True, eq=False)
class UpdatePass:
    """What a pass computes, made by `update_pass`: there is one object for each, which is the key of compiled code.

    Attributes:
        rule: the base rule.
        rule_plan: its options that change the computation and not only its constants.
        scaler: the scaler, or None where no factor is applied.
        scaler_plan: likewise.
        part: "whole" takes a gradient and applies it. A step that groups does both apart: "accumulate" takes it into
            the moments, and "apply" reads the moments and moves the parameter.
        maximize: whether to ascend.
        coupled_decay: whether weight decay enters the gradient.
        moments: keys of the state that the rule keeps.
        rule_constants: how many of the constants are the rule's. Those after them are the scaler's.
    """

    rule: BaseRule
    rule_plan: Plan
    scaler: Scaler | None
    scaler_plan: Plan
    part: Part
    maximize: bool
    coupled_decay: bool
    moments: tuple[str, ...]
    rule_constants: int

    def run(self, param: Tensor, grad: Tensor | None, state: Mapping[str, Tensor], constants: Sequence[Number]) -> None:
        """Change param and state in place.

        16-bit parameters and moments are computed in float32 and rounded once, at the end.

        Args:
            param: a stretch of the parameter.
            grad: its gradient, same shape; not changed. None for "apply".
            state: the stretch's part of the state, by key: same shape, but for what the scaler keeps per layer.
            constants: see `constants_of`.
        """
        dtype = arithmetic_dtype(param)
        rate, decay, coupled, *rest = constants
        own: Sequence[Number] = rest[: self.rule_constants]
        trust_ratio, *numbers = state[NUMBERS].to(dtype).unbind() if NUMBERS in state else (None,)
        raw = None
        value = param.to(dtype)
        # `to` gives the tensor itself where the dtype is right: then the moments are updated where they are.
        moments = {key: state[key].to(dtype) for key in self.moments}
        update = None
        if self.part != "apply":
            assert grad is not None
            raw = grad.to(dtype)
            grad = self._taken(raw, value, coupled)
            if self.rule.direction_first:
                update = self.rule.direction(grad, moments, own, self.rule_plan)
            # Padding, which belongs to no layer, is stepped like a vector.
            ratio: tuple[Number, ...] = (1.0 if trust_ratio is None else trust_ratio,)
            taken = (*own, *ratio) if self.rule.takes_trust_ratio else own
            self.rule.accumulate(grad, moments, taken, self.rule_plan)
            for key, tensor in moments.items():
                if tensor is not state[key]:
                    state[key].copy_(tensor)
        if self.part == "accumulate":
            return
        if update is None:
            update = self.rule.direction(grad, moments, own, self.rule_plan)
        if self.rule.adapts_updates:
            rate, decay = _adapted(rate, decay, state[RATIO].to(dtype)[0] if RATIO in state else None)
        # Of the momentum as it is kept: groupings count that one. Without momentum they count what is taken.
        momentum, factor = state.get(self.rule.momentum, grad), rate
        if self.scaler is not None:
            if RELABEL in state and momentum is not None:
                self.scaler.relabel(momentum, state, dtype, self.scaler_plan)
            of_scaler = rest[self.rule_constants :]
            factor = self.scaler.factor(raw, momentum, state, dtype, self.scaler_plan, of_scaler, numbers, rate)
        if COMPENSATION in state:
            _kahan_sum(param, value, _moved(value.clone(), decay, update, factor), state[COMPENSATION])
        elif value is param:
            _moved(param, decay, update, factor)
        else:
            param.copy_(_moved(value, decay, update, factor))

    def momentum_ahead(
        self, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], constants: Sequence[Number]
    ) -> Tensor:
        """Return the momentum that the pass will leave (or what it takes of the gradient, where none is kept).

        Args:
            param: a stretch of the parameter, not changed.
            grad: its gradient, same shape; not changed.
            state: the stretch's part of the state; not changed.
            constants: see `constants_of`.
        """
        dtype, key = arithmetic_dtype(param), self.rule.momentum
        _, _, coupled, *rest = constants
        ahead = torch.empty_like(param, dtype=state[key].dtype if key in self.moments else dtype)
        kept = [state[name] for name in self.moments]
        # Piece by piece: beside the momentum itself, copies of whole layers would be most of what a grouping takes.
        for value, raw, into, *old in pieces(_AHEAD, param, grad, ahead, *kept):
            taken = self._taken(raw.to(dtype), value.to(dtype) if self.coupled_decay else value, coupled)
            if key in self.moments:
                moments = {name: one.to(dtype, copy=True) for name, one in zip(self.moments, old, strict=True)}
                self.rule.accumulate(taken, moments, rest[: self.rule_constants], self.rule_plan)
                taken = moments[key]
            into.copy_(taken)
        return ahead

    def _taken(self, grad: Tensor, value: Tensor, coupled: Number) -> Tensor:
        """What the rule takes of a gradient: along the way that the step goes, with weight decay that enters it."""
        if self.maximize:
            grad = -grad
        return grad + value * coupled if self.coupled_decay else grad


def _adapted(rate: Number, decay: Number, ratio: Tensor | None) -> tuple[Number, Number]:
    """Return what the direction and what the parameter is multiplied by, given the trust ratio of the update."""
    return (rate, 1 - decay) if ratio is None else (rate * ratio, 1 - decay * ratio)


def _moved(value: Tensor, decay: Number, update: Tensor, factor: Number) -> Tensor:
    """Return decay x value - factor x update, in place of value, in as few operations as there are."""
    # Decay is not scaled by the factor: it belongs to the parameter, not to its gradient.
    value.mul_(decay)
    if not isinstance(factor, Tensor):
        return value.sub_(update, alpha=factor)
    return value.addcmul_(update, factor, value=-1)


@functools.cache
def _the_only(*fields: Hashable) -> UpdatePass:
    make: Any = UpdatePass
    return cast(UpdatePass, make(*fields))


def update_pass(
    rule: BaseRule, scaler: Scaler | None, part: Part, group: Group, moments: tuple[str, ...]
) -> UpdatePass:
    """Return the pass that a param group asks for.

    Args:
        rule: the base rule.
        scaler: the scaler; None for what is not scaled.
        part: see `UpdatePass`.
        group: the param group.
        moments: keys of the state that the rule keeps.
    """
    plan = None if scaler is None else scaler.plan(group)
    coupled = group["weight_decay"] != 0 and not rule.decoupled_weight_decay
    size = len(rule.constants(group, 1.0)[1])
    return _the_only(rule, rule.plan(group), scaler, plan, part, group["maximize"], coupled, moments, size)


def constants_of(rule: BaseRule, scaler: Scaler, group: Group, step: float, lr: float) -> tuple[float, ...]:
    """Return the numbers that change from step to step, or by param group.

    Returns:
        What the direction is multiplied by; what the parameter is multiplied by (or where a trust ratio comes into it,
        what is then taken from 1); the weight decay that enters the gradient; those of the rule; and those of the
        scaler.
    """
    rate, own = rule.constants(group, step)
    own = (*own, *scaler.constants(group))
    weight_decay, decoupled = group["weight_decay"], rule.decoupled_weight_decay
    shrinks = lr * weight_decay if decoupled else 0.0
    decay = shrinks if rule.adapts_updates else 1 - shrinks
    return (lr * rate, decay, 0.0 if decoupled else weight_decay, *own)


def _kahan_sum(param: Tensor, old: Tensor, new: Tensor, compensation: Tensor) -> None:
    """Write a 16-bit parameter, with what rounding took from earlier steps (Kahan, 1965, CACM 8(1)).

    Args:
        param: bfloat16 or float16, changed.
        old: its value, float32.
        new: what it should become, float32.
        compensation: what rounding has taken so far, in the dtype of `param`; changed.
    """
    change = (new - old).add_(compensation)
    param.copy_(old + change)
    compensation.copy_(change.sub_(param.to(old.dtype).sub_(old)))
