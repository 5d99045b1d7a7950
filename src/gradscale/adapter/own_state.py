"""What an adapter keeps of each parameter, beside the base's state.

Many bases take any key in their own for a sign that they have made it already.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from gradscale.adapter.flat_state import completed, is_flattened, move_rows_to_groups
from gradscale.adapter.one_tensor import Group
from gradscale.optim.layer_rows import KEY
from gradscale.optim.members import Member
from gradscale.optim.placement import brought_home
from gradscale.optim.rule import Scaler, Slot, State
from gradscale.optim.state_io import check_form, check_state, new_tensor
from gradscale.sharding import fsdp1


class OwnState:
    """The adapter's state of every parameter.

    Args:
        prefix: of the keys in saved state.
        scaler: the scaler, whose state it is.

    Attributes:
        states: by parameter.
    """

    def __init__(self, prefix: str, scaler: Scaler) -> None:
        self._prefix, self._scaler = prefix, scaler
        self.states: dict[Tensor, State] = {}

    def slots(self, member: Member) -> dict[str, Slot]:
        """What is kept of a tensor."""
        if not member.scaled:
            return {}
        return self._scaler.slots(member.param.shape, member.rows, member.group)

    def of(self, member: Member) -> State:
        """Return the state of a tensor; it is made, or completed, if need be."""
        state = self.states.setdefault(member.param, {})
        for key, slot in self.slots(member).items():
            if key not in state or state[key].shape != slot.shape:
                state[key] = new_tensor(slot, member.param)
        return state

    def joined(
        self,
        state_dict: dict[str, Any],
        groups: Sequence[Group],
        member_of: Callable[[Tensor, Group, int, int], Member],
    ) -> dict[str, Any]:
        """Return the base's state dict, with this state joined to that of each parameter.

        Args:
            state_dict: the base's.
            groups: the param groups.
            member_of: finds the member that stands at a place of them.
        """
        state, flat = dict(state_dict["state"]), {}
        for index, (packed, group) in enumerate(zip(state_dict["param_groups"], groups, strict=True)):
            for place, (key, param) in enumerate(zip(packed["params"], group["params"], strict=True)):
                own = {f"{self._prefix}{name}": value for name, value in self.states.get(param, {}).items()}
                if own:
                    state[key] = {**state.get(key, {}), **own}
                if own or fsdp1.is_flattened(param):
                    member = member_of(param, group, index, place)
                    if is_flattened(member):
                        flat[key] = member
        joined = {**state_dict, "state": state}
        if flat:
            move_rows_to_groups(joined, flat, self.slots, self._prefix)
        return joined

    def split(
        self, state_dict: Mapping[str, Any], groups: Sequence[Group], members: Sequence[Member]
    ) -> tuple[dict[str, Any], list[list[State]]]:
        """Part saved state into the base's and this.

        Args:
            state_dict: as saved, with the per-layer state of flattened tensors in its param groups.
            groups: its param groups, with every option, and nothing else of the adapter's.
            members: all tensors, in the order of the groups.

        Returns:
            What the base is to load, and this state by group and place.

        Raises:
            ValueError: it does not fit. Nothing has changed.
        """
        check_form(state_dict)
        state = dict(state_dict["state"])
        own: list[list[State]] = []
        left = list(members)
        for saved in state_dict["param_groups"]:
            own.append([])
            for key in saved["params"]:
                member = left.pop(0) if left else None
                of_key = state.get(key)
                mine = {
                    name[len(self._prefix) :]: value
                    for name, value in (of_key or {}).items()
                    if isinstance(name, str) and name.startswith(self._prefix)
                }
                if of_key is not None:
                    rest = {name: value for name, value in of_key.items() if not str(name).startswith(self._prefix)}
                    state[key] = rest
                    if not rest:
                        del state[key]
                if member is not None and is_flattened(member):
                    mine = completed(mine, member, self.slots(member), saved.get(f"{self._prefix}{KEY}"))
                own[-1].append(self._checked(mine, member) if mine and member is not None else {})
        return {**state_dict, "state": state, "param_groups": list(groups)}, own

    def _checked(self, state: State, member: Member) -> State:
        slots = self.slots(member)
        name = ", ".join(segment.name for segment in member.view.segments[:3])
        check_state({"step": 0, **state}, slots, {"step"}, owner=f"{self._prefix.rstrip('_').upper()}, {name}")
        return state if all(key in state for key in slots) else {}

    def take(self, own: Sequence[Sequence[State]], groups: Sequence[Group]) -> None:
        """Take state, by group and place, in the place of all that there is."""
        self.states = {}
        for states, group in zip(own, groups, strict=True):
            for state, param in zip(states, group["params"], strict=True):
                if state:
                    self.states[param] = dict(state)

    def restore(self, members: Sequence[Member], *, complete: bool = False) -> None:
        """Bring state that has been loaded to the devices and dtypes that it is kept in, and say what has none.

        Args:
            members: all tensors.
            complete: nothing is missing: it was saved before the first step, as accelerate does to move it.
        """
        unknown = 0
        for member in members:
            slots, state = self.slots(member), self.states.get(member.param)
            if slots and not state:
                unknown += len(member.scaled)
            for key, value in (state or {}).items():
                if isinstance(value, Tensor) and key in slots:
                    # Never the saved tensor itself, which the caller may go on with.
                    assert state is not None
                    state[key] = brought_home(value.detach().clone(), slots[key], member.param.device)
        if unknown and not complete:
            what = "running importance" if self._scaler.history is not None else "groups"
            warnings.warn(
                f"the loaded state has no {what} for {unknown} layers (saved by the plain optimizer, or before their "
                "first step): they start anew",
                UserWarning,
                stacklevel=3,
            )

    def by_place(self, groups: Sequence[Group]) -> list[list[State]]:
        """Return this state by group and place."""
        return [[self.states.get(param, {}) for param in group["params"]] for group in groups]
