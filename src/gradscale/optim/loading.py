"""Loading, copying and pickling of an optimizer's state, as a mixin of the step loop."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

from gradscale.optim.kernels.choice import StepKernel
from gradscale.optim.kernels.update_pass import COMPENSATION
from gradscale.optim.layer_rows import KEY, Rows, dtypes_for_fsdp1, for_fsdp1, per_layer_keys, rows_of, with_rows
from gradscale.optim.members import Member, MemberTable
from gradscale.optim.passes import Turn
from gradscale.optim.report import GroupingReport
from gradscale.optim.rule import BaseRule, Group, Scaler, Slot, State
from gradscale.optim.saved_groups import GROUPS, pack_options
from gradscale.optim.state_io import check_form, check_state, hold_tensors, new_tensor, restore_state, step_tensor
from gradscale.option_tables import COMMON
from gradscale.sharding import fsdp1
from gradscale.sharding.reduce import largest_on_any_rank
from gradscale.sharding.roster import Roster


class StateLoading(Optimizer):
    """An optimizer whose state survives loading, copying and pickling exactly, or is refused before any change."""

    base: ClassVar[BaseRule]
    scaler: ClassVar[Scaler]
    _roster: Roster
    _kernel: StepKernel
    _table: MemberTable
    _report: GroupingReport | None
    _held: list[Turn]  # updates whose momentum is up to date and that wait for a grouping
    _ungrouped: set[int]  # ids of tensors whose state an engine brought back without groups
    _embedding_names: frozenset[str]  # of the layer that embedding_lr_factor is for
    _end_names: frozenset[str]  # of those that are no hidden layers

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state as saved by `state_dict()`, or by the plain base optimizer (whose layers then start ungrouped).

        Tensors get the dtype that this optimizer keeps them in, whatever the parameter's; loads under
        `torch.load(weights_only=True)` are enough. Pre-hooks see the state dict as given.

        Raises:
            ValueError: the state does not fit the parameters, or is damaged. Nothing has changed then.
        """
        positions = self._roster.positions(self.param_groups)
        # Registered last, so that it runs after the user's own pre-hooks.
        handle = self.register_load_state_dict_pre_hook(_check_and_hold)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self._roster.rebind(positions, self.param_groups)
        if any("steps" not in group for group in state_dict["param_groups"]):
            self._agree_on_steps()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in the form that the engine's checkpoints can take.

        The per-layer state of tensors that FSDP1 or DeepSpeed flattened is in the param groups, by name of the layer.
        """
        # Registered first, so that the user's own hooks see the state dict as it is saved.
        handle = self.register_state_dict_post_hook(_move_rows_to_groups, prepend=True)
        try:
            self._make_state_for_fsdp1()
            return super().state_dict()
        finally:
            handle.remove()

    def _reset_engine_caches(self) -> None:
        self._table = MemberTable(
            self._roster,
            self.scaler,
            others=(*COMMON, *self.base.options),
            adapts=self.base.adapts,
            rated=self._embedding_names,
            ends=self._end_names,
        )
        self._held = []
        self._ungrouped = set()

    def _slots(self, member: Member) -> dict[str, Slot]:
        """State tensors of one tensor."""
        param, group = member.param, member.group
        slots = self.base.slots(param, group)
        if group["kahan_sum"] and param.dtype in (torch.bfloat16, torch.float16):
            slots[COMPENSATION] = Slot(param.dtype, param.shape, may_be_nan=True)
        if member.scaled:
            slots |= self.scaler.slots(param.shape, member.rows, group)
        return slots

    def _own_options(self, group: Group) -> Group:
        """Options of a param group that a plain optimizer's group has not."""
        return {key: group[key] for key in (*COMMON, *self.base.options, *self.scaler.options)}

    def _checked(self, group: Group) -> Group:
        raise NotImplementedError  # the named optimizers' base class has it

    def _check_loaded(self, state_dict: Mapping[str, Any]) -> dict[Any, State]:
        """Return the state of each parameter, with its per-layer state from wherever it travelled.

        Raises:
            ValueError: it does not fit. Group sizes are torch's to check, before any change.
        """
        check_form(state_dict)
        checked: dict[Any, State] = {}
        saved_groups = state_dict["param_groups"]
        if [len(group["params"]) for group in saved_groups] != [len(group["params"]) for group in self.param_groups]:
            return checked
        changed: dict[str, str] = {}
        options = [
            self._checked({**self._own_options(group), **saved})
            for saved, group in zip(saved_groups, self.param_groups, strict=True)
        ]
        # FSDP1 brings what any layer has for all layers alike.
        keys = {
            key
            for merged, group in zip(options, self.param_groups, strict=True)
            for param in group["params"][:1]
            for key in (*self.base.slots(param, merged), *self.scaler.slots(torch.Size([1, 1]), None, merged))
        }
        for index, (saved, group, merged) in enumerate(zip(saved_groups, self.param_groups, options, strict=True)):
            for name in self.scaler.options:
                if merged[name] != group[name]:
                    changed[name] = f"{name}={merged[name]!r} (not {group[name]!r})"
            for place, (key, param) in enumerate(zip(saved["params"], group["params"], strict=True)):
                state = state_dict["state"].get(key)
                if state and "step" not in state and not self.base.counts_steps:
                    # There was one at least. All that counts is that the next gradient is not the first.
                    state = {"step": saved.get("steps", 1), **state}
                # FSDP1 brings nothing for a tensor with nothing here, but each rank knows the scales of all layers.
                nothing_here = not state and param.numel() == 0 and KEY in saved
                if state or nothing_here:
                    member = self._table.member(param, group, index, place, options=merged)
                    if nothing_here:
                        empty = {name: slot for name, slot in self._slots(member).items() if slot.shape == param.shape}
                        state = {"step": saved.get("steps", 0)}
                        state |= {name: new_tensor(slot, param) for name, slot in empty.items()}
                    slots, name = self._slots(member), ", ".join(segment.name for segment in member.view.segments[:3])
                    own = {name: value for name, value in state.items() if name in slots or name not in keys}
                    checked[key] = with_rows(own, member, slots, saved.get(KEY))
                    required = {"step", *self.base.slots(param, merged)}
                    check_state(checked[key], slots, required, owner=f"{type(self).__name__}, {name}")
        if changed:
            # As in torch, a checkpoint brings its own options. Nobody expects that of those typed for this run.
            warnings.warn(f"the loaded state goes on with its own {', '.join(changed.values())}", stacklevel=5)
        return checked

    def __getstate__(self) -> dict[str, Any]:
        roster = self._roster.of_groups(self.param_groups)
        kept = {"_roster": roster, "_report": self._report, "_kernel": self._kernel.choice}
        names = {"_embedding_names": self._embedding_names, "_end_names": self._end_names}
        return {**super().__getstate__(), **kept, **names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take state from loading, unpickling or copying; options that an older version did not know get defaults."""
        super().__setstate__(state)
        if not isinstance(self._roster, Roster):
            self._roster = Roster.restored(self._roster, self.param_groups)
            self._reset_engine_caches()
        if isinstance(self._kernel, str):
            self._kernel = StepKernel(self._kernel, type(self).__name__)
        self._ungrouped = set()
        layers = unknown = overdue = lost = 0
        for index, group in enumerate(self.param_groups):
            group.pop(KEY, None)
            group.pop(GROUPS, None)
            for key in (*COMMON, *self.base.options, *self.scaler.options):
                group.setdefault(key, self.defaults[key])
            for place, param in enumerate(group["params"]):
                if self.state.get(param):
                    member, own = self._table.member(param, group, index, place), self.state[param]
                    without_scales, without_labels = self._restore(member)
                    unknown += without_scales
                    lost += without_labels
                    if "scales" in own and param.numel() > 1:  # one element never leaves its initial scale
                        layers += len(member.scaled)
                        overdue += len(member.scaled) * self.scaler.overdue(own, group)
            # Of an optimizer that does not count its steps, the tensor that has seen most tells. The count is missing
            # then, or 0 where torch.distributed.checkpoint filled it in.
            counts = [int(self.state[p]["step"]) for p in group["params"] if self.state.get(p)]
            group["steps"] = max(group.get("steps", 0), *counts, 0)
        # torch.distributed.checkpoint fills in what a checkpoint lacks with newly made state, of all layers then.
        self._warn_of_lost(unknown or (overdue if overdue == layers else 0), lost)

    def _restore(self, member: Member) -> tuple[int, int]:
        """Bring loaded state to form; layers that lost their labels are grouped at the next step.

        Returns:
            The number of its layers that came without scales (or without a running importance, where that is what the
            scaler keeps), and of those that came with scales but no labels.
        """
        state, slots = self.state[member.param], self._slots(member)
        missing = restore_state(state, slots, member.param)
        rows = per_layer_keys(member, slots)
        scaler_keys = self.scaler.slots(member.param.shape, member.rows, member.group) if member.scaled else {}
        if not any(key in missing for key in scaler_keys):
            return 0, 0
        if self.scaler.history is not None:
            # What is known of a layer means nothing without what is known of its elements.
            state.update({key: new_tensor(slot, member.param) for key, slot in scaler_keys.items()})
            return len(member.scaled), 0
        if any(key in missing for key in rows):
            return len(member.scaled), 0
        if all(bool((state[key] == slots[key].fill).all()) for key in rows):
            return 0, 0  # never grouped: what is filled in for the labels is what they were
        self._ungrouped.add(id(member.param))
        return 0, len(member.scaled)

    def _warn_of_lost(self, unknown: int, lost: int) -> None:
        """Say for how many layers a load brought no scales, and for how many no labels. See `_restore`."""
        if unknown and self.scaler.history is not None:
            warnings.warn(
                f"the loaded state has no running importance for {unknown} layers (saved by another optimizer, or by "
                "DeepSpeed's universal checkpoint, which cannot take it): it starts anew",
                UserWarning,
                stacklevel=4,
            )
        elif unknown:
            warnings.warn(
                f"the loaded state has no groups for {unknown} layers (saved by another optimizer, or before their "
                "first step): their scales start at 1 until the next grouping",
                UserWarning,
                stacklevel=4,
            )
        if lost:
            warnings.warn(
                f"the loaded state has scales but no labels for {lost} layers (DeepSpeed's universal checkpoint cannot "
                "take labels): all layers are grouped at the first step",
                UserWarning,
                stacklevel=4,
            )

    def _agree_on_steps(self) -> None:
        """Count the steps alike on all ranks of FSDP1: it brings nothing to one that has nothing of any tensor."""
        flattened = [m for m in self._table.members(self.param_groups) if fsdp1.is_flattened(m.param)]
        steps = [int(group["steps"]) for group in self.param_groups]
        agreed = largest_on_any_rank(steps, [member.view.process_groups for member in flattened])
        for group, count in zip(self.param_groups, agreed, strict=True):
            group["steps"] = count

    def _make_state_for_fsdp1(self) -> None:
        """Make the state of tensors that FSDP1 flattened: it loads only into state that is there already."""
        if any(fsdp1.is_flattened(param) for group in self.param_groups for param in group["params"]):
            for member in self._table.members(self.param_groups):
                self._init_state(member)

    def _init_state(self, member: Member) -> None:
        """Make the state of a tensor: all of it, or what an option asks for that was changed since the last step."""
        param, state = member.param, self.state[member.param]
        if not state:
            state["step"] = step_tensor(0.0)
        elif member.has_state:
            return
        for key, slot in self._slots(member).items():
            if key not in state or state[key].shape != slot.shape:
                state[key] = new_tensor(slot, param)
        member.has_state.append(True)


def _check_and_hold(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(optimizer, StateLoading)  # registered by load_state_dict alone
    checked = optimizer._check_loaded(state_dict)
    groups = state_dict["param_groups"]
    if len(groups) == len(optimizer.param_groups):
        # What another optimizer's groups lack stays as it is in this one's.
        own = [optimizer._own_options(group) for group in optimizer.param_groups]
        groups = [{**options, **saved} for options, saved in zip(own, groups, strict=True)]
    return hold_tensors({**state_dict, "state": {**state_dict["state"], **checked}, "param_groups": groups})


def _move_rows_to_groups(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    assert isinstance(optimizer, StateLoading)  # registered by state_dict alone
    flat: dict[Any, tuple[Member, dict[str, Slot]]] = {}
    for index, (packed, group) in enumerate(zip(state_dict["param_groups"], optimizer.param_groups, strict=True)):
        for place, (key, param) in enumerate(zip(packed["params"], group["params"], strict=True)):
            if state_dict["state"].get(key):
                member = optimizer._table.member(param, group, index, place)
                # FSDP1 keeps tensors whole on one rank, and flattens the same ones on several.
                if member.view.flat or fsdp1.is_flattened(param):
                    flat[key] = member, optimizer._slots(member)
    # What DeepSpeed's universal checkpoint wrote into the groups counts until the next step takes it over.
    waiting: Rows = next((group[KEY] for group in optimizer.param_groups if KEY in group), {})
    rows: Rows = {}
    own = {key: dtypes_for_fsdp1(member, slots, optimizer.base.momentum) for key, (member, slots) in flat.items()}
    dtypes = {name: dtype for dtypes in own.values() for name, dtype in dtypes.items()}
    for key, (member, slots) in flat.items():
        state = state_dict["state"][key]
        rows |= rows_of(member, state, slots)
        state = {name: value for name, value in state.items() if name not in per_layer_keys(member, slots)}
        if waiting and member.view.stepped_apart is not None:
            base = optimizer.base.slots(member.param, member.group)
            state = {name: value for name, value in state.items() if name in ("step", *base)}
        if member.view.stepped_apart is None:
            state = for_fsdp1(state, member.param, {**dtypes, **own[key]})
        state_dict["state"][key] = state
    stepped_apart = any(member.view.stepped_apart is not None for member, _ in flat.values())
    if rows or stepped_apart:
        for packed in state_dict["param_groups"]:
            packed[KEY] = {**rows, **waiting}
    if stepped_apart:
        pack_options(state_dict["param_groups"])
