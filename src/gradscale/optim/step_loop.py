"""The one step loop: base rule x scaler over a sharding view."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.optim.ahead import gradients_back, momentum_ahead, waits_with_gradients
from gradscale.optim.kernels.choice import Run
from gradscale.optim.kernels.update_pass import RELABEL, Part
from gradscale.optim.members import Member, layers_of, local_state
from gradscale.optim.passes import Extras, Turn, prepare_passes
from gradscale.optim.report import GroupingReport
from gradscale.optim.rule import Layer
from gradscale.optim.step_numbers import StepNumbers, reads_gradients
from gradscale.optim.universal import UniversalLoading
from gradscale.optim.update_ratios import UpdateRatios
from gradscale.sharding import fsdp1
from gradscale.sharding.coverage import check_coverage
from gradscale.sharding.dtensor import local_part
from gradscale.sharding.reduce import largest_on_any_rank
from gradscale.sharding.view import UnsupportedShardingError

_ONE = torch.tensor(1.0)


class _Finish(NamedTuple):
    """The second part of a step, which follows a grouping or sums over updates.

    Attributes:
        part: what passes do: "apply", or "whole" where gradients are taken after the grouping.
        turns: the updates.
        relabels: see `StepLoop._relabels`.
        ratios: trust ratios of updates.
        runs: the passes.
    """

    part: Part
    turns: list[Turn]
    relabels: dict[tuple[int, int], dict[str, Tensor]]
    ratios: UpdateRatios
    runs: list[Run]


class StepLoop(UniversalLoading):
    """An optimizer that steps. See `ScaledOptimizer`."""

    def _step(self, closure: Callable[[], float] | None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_over_options()
        members = self._table.members(self.param_groups)
        updates = [member for member in members if member.param.grad is not None or member.has_nothing_here]
        if all(member.param.grad is None for member in members) and not _may_step_elsewhere(members):
            self._refuse_replaced(members)
            return loss
        self._refuse_unsupported(updates)
        together = self._table.training_step(members)
        self._first_use(together)
        clock = self._clock(updates)
        only_makes_state = clock == 1 and self._only_makes_state(members)
        # Before anything is changed: it raises where the run length is not known.
        due = set() if only_makes_state else self._due_groups(together, clock)
        # Once per group: reading a tensor on a GPU waits for it.
        rates = {id(group): float(group["lr"]) for group in self.param_groups}
        apart = any(member.view.stepped_apart is not None for member in updates)
        # DeepSpeed looks up the state of all its tensors after the first call, for its own accessors. With FSDP1 a rank
        # that has nothing of a layer does not know whether others have a gradient, and all must keep the same of it.
        for member in together if apart or _may_step_elsewhere(members) else updates:
            self._init_state(member)
        if only_makes_state:
            return loss
        self._kernel.weigh(local_part(member.param).numel() for member in together)
        # An engine that steps its tensors apart has further calls in this training step: the grouping, and the sums of
        # trust ratios, are in the last of those that bring a layer to scale, or one with a trust ratio.
        waits = not apart or any(member.scaled or member.adapted for member in updates)
        groups_now = bool(due) and waits
        # The gradients of some bases are taken after the grouping, because their direction needs them.
        ahead = groups_now and waits_with_gradients(together, self.base)
        in_two = not ahead and (groups_now or (self.base.adapts_updates and waits))
        # A grouping reads the momenta of all layers, today's gradients included, before any of them is applied.
        steps = [self.state[member.param]["step"] for member in updates]
        turns = [
            Turn(member, rates[id(member.group)], step.item() + 1, member.param.grad)
            for member, step in zip(updates, steps, strict=True)
        ]
        numbers = (
            StepNumbers(together, self.base, self.scaler, self._kernel)
            if reads_gradients(together, self.base, self.scaler)
            else None
        )
        # What cannot be compiled must be known before anything is changed.
        finish = self._finish(turns, together, "whole" if ahead else "apply") if ahead or in_two else None
        extras = None if numbers is None else numbers.extras
        runs = [] if ahead else self._prepared(turns, "accumulate" if in_two else "whole", extras)
        for group in self.param_groups:
            group["steps"] = clock
        if steps:  # FSDP1 may give this rank nothing to update
            torch._foreach_add_(steps, [_ONE] * len(steps))  # a third of the time of a number
        if numbers is not None and apart:
            # No parameter moves before the gradients of all are known. The last call moves all.
            self._held.extend(turns)
            if self._all_stepped(together, clock):
                held, self._held = self._held, []
                self._run_held(held, numbers, clock)
                self._publish(held, updates)
            return loss
        if numbers is not None:
            numbers.fill(self.state, clock)
        if not ahead:
            _run(runs, turns)
        if finish is None:
            return loss
        self._held.extend(turns)
        if self._all_stepped(together, clock):
            held, self._held = self._held, []
            with gradients_back(held if ahead else []):
                if len(held) > len(turns):
                    finish = self._finish(held, together, finish.part)
                report = self._observe(together, due, clock, finish) if due else None
                finish.ratios.fill(held, self.state)
                _run(finish.runs, held)
            self._publish(held, updates)
            if report is not None:
                self._report = report
                self.scaler.warn(report)
        return loss

    def _run_held(self, held: list[Turn], numbers: StepNumbers, clock: int) -> None:
        """Update tensors of earlier calls, whose gradients the engine has taken away since."""
        with gradients_back(held):
            runs = self._prepared(held, "whole", numbers.extras)
            numbers.fill(self.state, clock)
            _run(runs, held)

    @staticmethod
    def _publish(held: list[Turn], updates: list[Member]) -> None:
        """Bring tensors that were updated later than in their own call to the model's parameters."""
        current = {id(member.param) for member in updates}
        for member, *_ in held:
            if id(member.param) not in current and member.view.publish is not None:
                member.view.publish()

    def _clock(self, updates: list[Member]) -> int:
        """Number of the training step that begins."""
        if updates and updates[0].view.stepped_apart is not None:
            # One call is not one training step, but every tensor has a gradient in each of them.
            return 1 + int(self.state.get(updates[0].param, {}).get("step", 0))
        # Counted in the groups: no single parameter need have a gradient in every step.
        return 1 + max(int(group["steps"]) for group in self.param_groups)

    def _due_groups(self, together: list[Member], clock: int) -> set[int]:
        """Ids of the param groups whose layers are grouped in this training step, if any layer is scaled at all."""
        groups = {id(member.group): member.group for member in together if member.scaled}
        regroup = any(id(member.param) in self._ungrouped for member in together)
        return {key for key, group in groups.items() if regroup or self.scaler.due(clock, group)}

    def _all_stepped(self, together: list[Member], clock: int) -> bool:
        """Whether all scaled layers, and all with a trust ratio, have come in this training step."""
        return all(
            member.view.stepped_apart is None or self.state.get(member.param, {}).get("step", 0) >= clock
            for member in together
            if member.scaled or member.adapted
        )

    def _refuse_replaced(self, members: list[Member]) -> None:
        """Refuse to do nothing for ever, where FSDP1 replaced all parameters after the optimizer was made."""
        if not self.state and fsdp1.has_replaced(member.param for member in members):
            raise UnsupportedShardingError(
                "none of the parameters has a gradient, and FSDP1 has put vectors in the place of parameters of these "
                "shapes: make the optimizer after wrapping the model, from the wrapped model's parameters, or set "
                "use_orig_params=True"
            )

    def _refuse_unsupported(self, updates: list[Member]) -> None:
        for member in updates:
            grad = member.param.grad
            if grad is not None and grad.layout != torch.strided:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            if grad is not None and grad.shape != member.param.shape:
                raise RuntimeError(
                    f"a gradient of shape {list(grad.shape)} does not fit a parameter of shape "
                    f"{list(member.param.shape)}: with FSDP1, call step() after a backward() outside of no_sync()"
                )
            if any(member.param is held.member.param for held in self._held):
                raise RuntimeError(
                    f"DeepSpeed left some of {type(self).__name__}'s tensors out of the last step, in which all layers "
                    "were to be grouped"
                )
        if updates and updates[0].param.is_cuda and torch.cuda.is_current_stream_capturing():
            # A graph would replay the kernels of this step and never group again.
            raise RuntimeError(f"{type(self).__name__}.step() cannot be captured in a CUDA graph")

    def _first_use(self, members: list[Member]) -> None:
        """Check what engines sharded, once per tensor, and take over state that one of them wrote without asking."""
        new = self._table.unchecked(members)
        if new:
            check_coverage([member.view for member in new])
        self._take_over_state(members, new)
        self._table.mark_checked(new)

    def _only_makes_state(self, members: list[Member]) -> bool:
        """Whether this first step is only asked for to have state to load into.

        torch.distributed.checkpoint does that, with a learning rate of 0 and gradients of 0. Such a step must not
        count: not towards the next grouping, and not as one whose run length should be known.
        """
        if any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        if any(member.view.stepped_apart is not None for member in members):
            return False
        moves = any(bool(local_part(member.param.grad).any()) for member in members if member.param.grad is not None)
        return not largest_on_any_rank([int(moves)], [member.view.process_groups for member in members])[0]

    def _finish(self, turns: list[Turn], together: list[Member], part: Part) -> _Finish:
        """Prepare what updates parameters once their momenta are grouped, and their trust ratios known."""
        relabels, ratios = self._relabels(turns), UpdateRatios(together, self.base, self._kernel)
        return _Finish(part, turns, relabels, ratios, self._prepared(turns, part, relabels, ratios.extras))

    def _prepared(
        self, turns: list[Turn], part: Part, extras: Extras | None = None, ratios: Extras | None = None
    ) -> list[Run]:
        return prepare_passes(
            turns,
            part,
            base=self.base,
            scaler=self.scaler,
            kernel=self._kernel,
            states=self.state,
            extras=extras or {},
            ratios=ratios or {},
        )

    def _relabels(self, turns: list[Turn]) -> dict[tuple[int, int], dict[str, Tensor]]:
        """Return what tells passes which layers have just been grouped: none yet."""
        labelled = [turn.member for turn in turns if self.scaler.keeps_labels(turn.member.group)]
        return {
            (id(member.param), row): {RELABEL: torch.zeros(1, device=local_part(member.param).device)}
            for member in labelled
            for row in range(len(member.scaled))
        }

    def _observe(self, members: list[Member], due: set[int], clock: int, finish: _Finish) -> GroupingReport | None:
        layers: list[Layer] = []
        relabels = {key: extra[RELABEL] for key, extra in finish.relabels.items()}
        ahead = momentum_ahead(finish.turns, self.base, self.scaler) if finish.part == "whole" else None
        for member in members:
            if not member.scaled or member.param.is_meta:
                continue
            if member.view.process_groups:
                # Every rank takes part for every layer, also for one that had no gradient here.
                self._init_state(member)
            elif not self.state.get(member.param):
                continue
            state = local_state(self.state[member.param])
            key, is_due = self.base.momentum, id(member.group) in due
            of_layer = None if ahead is None else ahead(member)
            layers.extend(layers_of(member, state, key, due=is_due, later=relabels, ahead=of_layer))
        report = self.scaler.observe(layers, clock)
        if report is not None and self._ungrouped:
            self._ungrouped.clear()
        return report


def _run(runs: list[Run], turns: list[Turn]) -> None:
    for run, argument in runs:
        run(argument)
    # Compiled code changes tensors behind autograd's back, which has to refuse a backward pass through old values.
    torch.autograd.graph.increment_version([local_part(turn.member.param) for turn in turns])


def _may_step_elsewhere(members: list[Member]) -> bool:
    """Whether other ranks may have gradients though this one has none, as FSDP1 gives none to what lies elsewhere.

    Each call is a training step on all ranks then: they must agree on the clock, and join the same sums.
    """
    return any(
        member.view.flat and member.view.process_groups and member.view.stepped_apart is None for member in members
    )
