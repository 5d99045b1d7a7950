"""The step of an adapter: a factor on its base's update, and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor

from gradscale.adapter.on_engines import (
    PartsOfAStep,
    check_base,
    may_step_elsewhere,
    only_makes_state,
    refuse_past_loading,
    refuse_unsupported,
)
from gradscale.adapter.one_tensor import OneTensor
from gradscale.adapter.options import Options
from gradscale.adapter.rescale import Rescaled
from gradscale.adapter.wrapped import Wrapped
from gradscale.optim.kernels.choice import StepKernel
from gradscale.optim.layer_rows import KEY
from gradscale.optim.members import Member
from gradscale.sharding.coverage import check_coverage


class Adapted(Wrapped):
    """Base class of the adapters: the base steps, a tensor at a time, and its update is scaled.

    Attributes:
        waits: whether no tensor may move before the gradients of all are known, where an engine calls `step()` once for
            each of its tensors.
        tries_shards: whether shards are stepped for a trial before the first step, beside whole layers.
    """

    waits: ClassVar[bool] = False
    tries_shards: ClassVar[bool] = True

    def _reset(self) -> None:
        super()._reset()
        self._kernel = StepKernel("auto", type(self).__name__)
        self._alone = OneTensor(self.base_optimizer) if self.base_optimizer is not None else None
        self._parts = PartsOfAStep()
        self._waiting: list[tuple[Member, Tensor]] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # overloads
        """Let the base take a step, and scale it.

        Args:
            closure: reevaluates the model and returns the loss; called once, with gradients enabled.

        Raises:
            RuntimeError: a gradient is sparse, or an engine has sharded the parameters in a way that the base, or what
                the scaler keeps of a layer, cannot go with. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members = list(self._members())
        updates = [member for member in members if member.param.grad is not None]
        if not updates and not may_step_elsewhere(members):
            return loss
        together = self._table.training_step(members)
        self._check(together, updates)
        turns = [(member, member.param.grad) for member in updates if member.param.grad is not None]
        clock = 1 + max(int(group[f"{self.prefix}steps"]) for group in self._roster.groups())
        if clock == 1 and only_makes_state(members, self.param_groups):
            for member in together:
                self._own.of(member)
            self._update(turns, lambda *_: Rescaled(None))
            return loss
        try:
            last = self._parts.is_last(together, [member for member, _ in turns])
        except RuntimeError:
            self._waiting.clear()
            raise
        if self.waits:
            self._waiting.extend(turns)
            if not last:
                return loss  # DeepSpeed brings the others in further calls of this training step
            turns, self._waiting = self._waiting, []
        self._take(together, turns, clock, last=last)
        if not last:
            return loss
        current = {id(member.param) for member in updates}
        for member, _ in turns:
            if id(member.param) not in current and member.view.publish is not None:
                member.view.publish()
        for group in self._roster.groups():
            group[f"{self.prefix}steps"] = clock
        return loss

    def _check(self, together: list[Member], updates: list[Member]) -> None:
        """Raise before anything is changed where an engine did what the base or the scaler cannot go with."""
        assert self.base_optimizer is not None
        refuse_unsupported(type(self).__name__, updates)
        new = self._table.unchecked(together)
        unloaded = [] if self._took_state else new
        refuse_past_loading(type(self).__name__, unloaded, self._roster.groups(), self.state, f"{self.prefix}{KEY}")
        if new:
            check_coverage([member.view for member in new])
            of_groups = [(member, self._options.of_member(member).group) for member in new]
            checked = [(member, group, self._traits_of(group)) for member, group in of_groups]
            check_base(self.base_optimizer, checked, tries_shards=self.tries_shards)
            self._table.mark_checked(new)

    def _take(self, together: list[Member], turns: list[tuple[Member, Tensor]], clock: int, *, last: bool) -> None:
        """Take the training step, or a part of it. Every rank must call it.

        Args:
            together: all tensors of the training step.
            turns: those to update now, with their gradients.
            clock: number of the training step.
            last: whether all others have been updated in it.
        """
        raise NotImplementedError

    def _update(
        self,
        turns: Iterable[tuple[Member, Tensor]],
        rescaled: Callable[[Member, Tensor], Rescaled],
        *,
        last: bool = True,
    ) -> None:
        """Update tensors one after the other.

        Args:
            turns: tensors and their gradients.
            rescaled: how the update of one is scaled.
            last: whether these are the last of a training step.
        """
        assert self._alone is not None
        shown = set()
        try:
            for member, grad in turns:
                options: Options = self._options.of_member(member)
                group = options.group
                rescaled(member, grad).update(self._alone, group, self._traits_of(group), member.param, grad)
                shown.add(id(group))
            if not any(member.view.stepped_apart is not None for member, _ in turns):
                for group in self.param_groups:
                    if id(group) not in shown and group["params"]:
                        self._alone.count(group)
        except BaseException:
            self._alone.forget()
            raise
        if last:
            self._alone.finish()
