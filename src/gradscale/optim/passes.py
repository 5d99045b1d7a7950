"""From tensors that are to be updated to what runs: which pass on which strip, with which numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from gradscale.optim.kernels.choice import Run, StepKernel
from gradscale.optim.kernels.constants import Constants
from gradscale.optim.kernels.strips import strips_of
from gradscale.optim.kernels.update_pass import Part, UpdatePass, constants_of, update_pass
from gradscale.optim.members import Member
from gradscale.optim.rule import BaseRule, Group, Scaler, State
from gradscale.sharding.dtensor import is_dtensor

# Per-layer tensors of one step alone, by id of the tensor and row of the layer in it.
Extras = Mapping[tuple[int, int], Mapping[str, Tensor]]
_NONE: Mapping[str, Tensor] = {}
_NONE_OF_ANY: Extras = {}


class Turn(NamedTuple):
    """The update of a tensor in this step.

    Attributes:
        member: the tensor.
        lr: its learning rate.
        number: updates of it so far, this one included.
        grad: its gradient.
    """

    member: Member
    lr: float
    number: float
    grad: Tensor | None


def prepare_passes(
    turns: Sequence[Turn],
    part: Part,
    *,
    base: BaseRule,
    scaler: Scaler,
    kernel: StepKernel,
    states: Mapping[Any, State],
    extras: Extras,
    ratios: Extras = _NONE_OF_ANY,
) -> list[Run]:
    """Return what runs a part of the step. Nothing has changed yet.

    Args:
        turns: the updates.
        part: which part of them.
        base: the base rule.
        scaler: the scaler.
        kernel: how passes run.
        states: the optimizer's state.
        extras: per-layer tensors of this step alone.
        ratios: likewise what has the trust ratios of updates; not by row, but by segment of the tensor.

    Raises:
        KernelUnavailableError: kernel="compiled", and no compiler works here.
    """
    runs: list[Run] = []
    updates: dict[tuple[int, bool], UpdatePass] = {}

    def update_of(member: Member, scaled: bool) -> UpdatePass:
        group = member.group
        update = updates.get((id(group), scaled))
        if update is None:
            moments = tuple(base.slots(member.param, group))
            update = update_pass(base, scaler if scaled else None, part, group, moments)
            updates[id(group), scaled] = update
        return update

    # Of a param group usually all tensors have seen as many steps, and all but one layer have the same rate.
    numbers: dict[tuple[int, float, float], Constants] = {}

    def constants_at(group: Group, number: float, lr: float) -> Constants:
        key = id(group), number, lr
        if key not in numbers:
            numbers[key] = Constants(constants_of(base, scaler, group, number, lr))
        return numbers[key]

    for member, lr, number, _ in turns:
        param, group = member.param, member.group
        if part != "apply" and param.grad is None:  # nothing of it is here
            continue
        own = lr * group["embedding_lr_factor"] if member.rated else lr
        constants = constants_at(group, number, lr if member.view.flat else own)
        state = states[param]
        whole = None if member.view.flat or is_dtensor(param) else (member, state)
        if whole is not None:
            extra = extras.get((id(param), 0), _NONE) if extras else _NONE
            if ratios and member.adapted:
                extra = {**extra, **ratios[id(param), 0]}
            known = kernel.recall(update_of(member, bool(member.scaled)), member, state, constants, extra)
            if known is not None:
                runs.append(known)
                continue
        for strip in strips_of(member, state, with_grad=part != "apply"):
            if strip.row is not None and extras:
                strip = strip._replace(per_layer={**strip.per_layer, **extras.get((id(param), strip.row), _NONE)})
            if strip.adapted is not None and ratios:
                strip = strip._replace(per_layer={**strip.per_layer, **ratios[id(param), strip.adapted]})
            if strip.rated:
                constants = constants_at(group, number, own)
            elif member.rated:
                constants = constants_at(group, number, lr)
            runs.append(kernel.prepare(update_of(member, strip.row is not None), strip, constants, whole))
    return runs
