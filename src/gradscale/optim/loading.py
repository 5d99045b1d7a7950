"""Loading, copying and pickling of an optimizer's state, as a mixin of the step loop."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from gradscale.optim.report import GroupingReport
from gradscale.optim.roster import Roster
from gradscale.optim.rule import BaseRule, Group, Scaler, Slot
from gradscale.optim.state_io import check_form, check_state, hold_tensors, restore_state
from gradscale.option_tables import COMMON


class StateLoading(Optimizer):
    """An optimizer whose state survives loading, copying and pickling exactly, or is refused before any change."""

    base: ClassVar[BaseRule]
    scaler: ClassVar[Scaler]
    _roster: Roster
    _report: GroupingReport | None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state as saved by `state_dict()`, or by the plain base optimizer (whose layers then start ungrouped).

        Tensors get the dtype that this optimizer keeps them in, whatever the parameter's; loads under
        `torch.load(weights_only=True)` are enough. Pre-hooks see the state dict as given.

        Raises:
            ValueError: the state does not fit the parameters, or is damaged. Nothing has changed then.
        """
        # Registered last, so that it runs after the user's own pre-hooks.
        handle = self.register_load_state_dict_pre_hook(_check_and_hold)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        """State tensors of one parameter."""
        slots = self.base.slots(param, group)
        return {**slots, **self.scaler.slots(param, group)} if self.scaler.scales(param, group) else slots

    def _checked(self, group: Group) -> Group:
        raise NotImplementedError  # the step loop's

    def _check_loaded(self, state_dict: Mapping[str, Any]) -> None:
        """Raise ValueError where the state does not fit. Group sizes are torch's to check, before any change."""
        check_form(state_dict)
        saved_groups = state_dict["param_groups"]
        if [len(group["params"]) for group in saved_groups] != [len(group["params"]) for group in self.param_groups]:
            return
        changed: dict[str, str] = {}
        for index, (saved, group) in enumerate(zip(saved_groups, self.param_groups, strict=True)):
            merged = self._checked({**self.defaults, **saved})
            for name in self.scaler.options:
                if merged[name] != group[name]:
                    changed[name] = f"{name}={merged[name]!r} (not {group[name]!r})"
            for place, (key, param) in enumerate(zip(saved["params"], group["params"], strict=True)):
                state = state_dict["state"].get(key)
                if state:
                    entry = self._roster.find(param, index, place)
                    owner = f"{type(self).__name__}, {entry.name if entry else key}"
                    required = {"step", *self.base.slots(param, merged)}
                    check_state(state, self._slots(param, merged), required, owner=owner)
        if changed:
            # As in torch, a checkpoint brings its own options. Nobody expects that of those typed for this run.
            warnings.warn(f"the loaded state goes on with its own {', '.join(changed.values())}", stacklevel=5)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_roster": self._roster.of_groups(self.param_groups), "_report": self._report}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take state from loading, unpickling or copying; options that an older version did not know get defaults."""
        super().__setstate__(state)
        layers = unknown = overdue = 0
        for group in self.param_groups:
            for key in (*COMMON, *self.base.options, *self.scaler.options):
                group.setdefault(key, self.defaults[key])
            for param in group["params"]:
                if self.state.get(param):
                    own = self.state[param]
                    unknown += "scales" in restore_state(own, self._slots(param, group), param)
                    if "scales" in own and param.numel() > 1:  # one element never leaves its initial scale
                        layers += 1
                        overdue += self.scaler.overdue(own, group)
            # Of an optimizer that does not count its steps, the tensor that has seen most tells. The count is missing
            # then, or 0 where torch.distributed.checkpoint filled it in.
            counts = [int(self.state[p]["step"]) for p in group["params"] if self.state.get(p)]
            group["steps"] = max(group.get("steps", 0), *counts, 0)
        # torch.distributed.checkpoint fills in what a checkpoint lacks with newly made state, of all layers then.
        ungrouped = unknown or (overdue if overdue == layers else 0)
        if ungrouped:
            warnings.warn(
                f"the loaded state has no groups for {ungrouped} layers (saved by another optimizer, or before their "
                "first step): their scales start at 1 until the next grouping",
                UserWarning,
                stacklevel=3,
            )


def _check_and_hold(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(optimizer, StateLoading)  # registered by load_state_dict alone
    optimizer._check_loaded(state_dict)
    return hold_tensors(state_dict)
