"""Momenta that a step will leave, for bases whose direction needs the gradient: they are grouped before it is taken in.

Most bases keep in their momentum all that a direction needs: a step that groups takes all gradients into the momenta,
groups those, and then moves the parameters. SGD without momentum, Nesterov's momentum and Lion need the gradient for
the direction. Their gradients wait, and a grouping looks at the momentum that each layer will have, made anew for one
layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gradscale.optim.kernels.update_pass import constants_of, update_pass
from gradscale.optim.members import Member
from gradscale.optim.passes import Turn
from gradscale.optim.rule import BaseRule, Scaler, State
from gradscale.sharding.dtensor import local_part


def waits_with_gradients(members: Sequence[Member], base: BaseRule) -> bool:
    """Whether a step that groups these members takes their gradients only after the grouping."""
    groups = {id(member.group): member.group for member in members}
    return any(base.direction_reads_gradient(group) for group in groups.values())


def momentum_ahead(
    turns: Sequence[Turn], base: BaseRule, scaler: Scaler
) -> Callable[[Member], Callable[[slice | None, State], Tensor]]:
    """Return what makes for each member what `layers_of` takes as `ahead`.

    Args:
        turns: the updates of the step. The momentum of a tensor without one stays as it is; where none is kept it is 0,
            and says nothing.
        base: the base rule.
        scaler: the scaler.
    """
    by_param = {id(turn.member.param): turn for turn in turns}

    def of_member(member: Member) -> Callable[[slice | None, State], Tensor]:
        turn = by_param.get(id(member.param))

        def of_layer(place: slice | None, state: State) -> Tensor:
            param = _part(member.param, place)
            if turn is None or turn.grad is None:
                return state[base.momentum] if base.momentum in state else torch.zeros_like(param)
            moments = tuple(base.slots(member.param, member.group))
            update = update_pass(base, scaler, "whole", member.group, moments)
            constants = constants_of(base, scaler, member.group, turn.number, turn.lr)
            return update.momentum_ahead(param, _part(turn.grad, place), state, constants)

        return of_layer

    return of_member


@contextmanager
def gradients_back(held: Sequence[Turn]) -> Iterator[None]:
    """Give tensors of earlier calls their gradients again, which the engine has taken away since."""
    away = [turn for turn in held if turn.member.param.grad is None and turn.grad is not None]
    for turn in away:
        turn.member.param.grad = turn.grad
    try:
        yield
    finally:
        for turn in away:
            turn.member.param.grad = None


def _part(tensor: Tensor, place: slice | None) -> Tensor:
    local = local_part(tensor)
    return local if place is None else local.view(-1)[place]
