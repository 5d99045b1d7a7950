"""State and options that DeepSpeed's universal checkpoint writes into an optimizer itself, without `load_state_dict`.

That checkpoint is the one for another number of ranks. It has the moments and steps of every parameter, and the param
groups of one rank. Labels are not in it; scales and boundaries travel in the param groups. ZeRO 3 hands the options of
the first group to all groups: so every group carries those of all.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from gradscale.optim.layer_rows import KEY, with_rows
from gradscale.optim.loading import StateLoading
from gradscale.optim.members import Member
from gradscale.optim.rule import Group, State
from gradscale.optim.saved_groups import GROUPS, own_options
from gradscale.optim.state_io import check_state, step_tensor
from gradscale.sharding.reduce import largest_on_any_rank


class UniversalLoading(StateLoading):
    """Takes over at the next step, or before saving, what was written past it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in the form that the engine's checkpoints can take. See `StateLoading`."""
        self._take_over_options()
        return super().state_dict()

    def _take_over_options(self) -> None:
        """Give every param group its own saved options again.

        Raises:
            ValueError: they are of another number of groups, or one is out of range. Nothing has changed then.
        """
        groups = self._roster.groups()
        if not any(GROUPS in group for group in groups):
            return
        own = [own_options(group, place, len(groups)) for place, group in enumerate(groups)]
        own = [self._checked({**self.defaults, **options}) for options in own]
        for group, options in zip(groups, own, strict=True):
            params = group["params"]
            group.clear()
            group.update(options, params=params)

    def _take_over_state(self, members: Sequence[Member], new: Sequence[Member]) -> None:
        """Complete state that an engine wrote into `state`: per-layer state, labels, and a step of each tensor's own.

        Args:
            members: those of one training step.
            new: those of them that have not been stepped before.

        Raises:
            ValueError: it does not fit. Nothing has changed then.
        """
        groups = self._roster.groups()
        rows = next((group[KEY] for group in groups if KEY in group), None)
        written = [m for m in (new if rows is None else members) if m.view.stepped_apart is not None]
        if not written:
            return
        # A rank that has nothing but padding of a tensor may have been left out.
        steps = largest_on_any_rank(
            [int(self.state.get(member.param, {}).get("step", 0)) for member in written],
            [member.view.process_groups for member in written],
        )
        found = [(member, step) for member, step in zip(written, steps, strict=True) if step]
        states = [self._completed(member, step, rows) for member, step in found]
        unknown = lost = 0
        for (member, _), state in zip(found, states, strict=True):
            self.state[member.param] = state
            without_scales, without_labels = self._restore(member)
            unknown += without_scales
            lost += without_labels
        for group in groups:
            group.pop(KEY, None)
        self._warn_of_lost(unknown, lost)
        if unknown and rows is None and len(groups) > 1 and self._all_alike(groups):
            warnings.warn(
                "all param groups have the same lr, weight_decay, betas and eps. If they were made with different "
                "ones, DeepSpeed's universal checkpoint of ZeRO 3 gave them those of the first group: set them again",
                UserWarning,
                stacklevel=6,
            )

    def _completed(self, member: Member, step: int, rows: Any) -> State:
        """State of a tensor as written by an engine, with its per-layer state. Raises as `_take_over_state`."""
        written, slots = self.state.get(member.param, {}), self._slots(member)
        base = self.base.slots(member.param, member.group)
        if rows is not None:
            # What else is there belongs to the run before loading.
            written = {key: written[key] for key in base if key in written}
        # ZeRO 3 gives all tensors one and the same step, which would count once for each of them.
        state = with_rows({**written, "step": step_tensor(float(step))}, member, slots, rows)
        names = ", ".join(segment.name for segment in member.view.segments[:3])
        lost = sorted(set(base) - set(state)) if written and rows is not None else []
        if lost:
            raise ValueError(
                f"DeepSpeed's universal checkpoint cannot take {', '.join(lost)} of {type(self).__name__}: resume with "
                "the number of ranks that the checkpoint was saved with"
            )
        required = {"step", *(base if written else ())}
        check_state(state, slots, required, owner=f"{type(self).__name__}, {names}")
        return state

    def _all_alike(self, groups: Sequence[Group]) -> bool:
        first, *others = [{key: group[key] for key in ("lr", "weight_decay", *self.base.options)} for group in groups]
        return all(other == first for other in others)
