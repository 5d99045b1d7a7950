"""What the optimizer was given, before engines replaced parameters and swapped groups; keeps no parameter alive.

accelerate's FSDP2 replaces parameters place by place and counts on the originals being freed: what is found in a place
where there was another parameter is known by that place. DeepSpeed replaces all parameters of a group by flat tensors
and leaves its marks on the originals, which the model keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from gradscale.sharding.view import ParamInfo

Group = dict[str, Any]


@dataclass
class GroupEntry:
    """One param group as it was given.

    Attributes:
        group: the dict that stands for it in `param_groups` now; loading replaces it.
        infos: what is known of its parameters.
        originals: the parameters themselves, as long as they live.
    """

    group: Group | None
    infos: list[ParamInfo]
    originals: list[weakref.ref[Tensor]]


class Roster:
    """Param groups as given, found by the identity of parameters and group dicts first, then by place."""

    def __init__(self) -> None:
        self._entries: list[GroupEntry] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], ParamInfo]] = {}

    def add_group(self, group: Group, members: Sequence[tuple[str | None, Tensor]]) -> None:
        """Enter a new param group with its (name, parameter) pairs; the name is None where none was given."""
        first = sum(len(entry.infos) for entry in self._entries)
        infos = [
            ParamInfo(name or f"parameter {first + offset}", None if is_lazy(param) else _shape(param))
            for offset, (name, param) in enumerate(members)
        ]
        self._entries.append(GroupEntry(group, infos, [weakref.ref(param) for _, param in members]))
        for info, (_, param) in zip(infos, members, strict=True):
            self._known[id(param)] = (weakref.ref(param), info)

    def info(self, param: Tensor) -> ParamInfo | None:
        """Return what is known of a parameter that the optimizer was given; None of any other tensor."""
        known = self._known.get(id(param))
        return known[1] if known is not None and known[0]() is param else None

    def info_by_place(self, param: Tensor, group: Group, index: int, place: int) -> ParamInfo | None:
        """Return what is known of the parameter whose place in a param group this tensor has taken, and keep that.

        Args:
            param: the tensor.
            group: its param group.
            index: where the group stands in `param_groups`, if it is none that was given.
            place: where the tensor stands in the group.
        """
        entry = self._entry(group, index)
        if entry is None or place >= len(entry.infos):
            return None
        self._known[id(param)] = (weakref.ref(param), entry.infos[place])
        return entry.infos[place]

    def originals(self, group: Group, index: int) -> list[tuple[ParamInfo, Tensor]]:
        """Parameters that a param group was given and that still live."""
        entry = self._entry(group, index)
        if entry is None:
            return []
        alive = [(info, original()) for info, original in zip(entry.infos, entry.originals, strict=True)]
        return [(info, param) for info, param in alive if param is not None]

    def group_of(self, original: Tensor) -> Group | None:
        """Return the param group that a parameter was given in."""
        for entry in self._entries:
            if any(ref() is original for ref in entry.originals):
                return entry.group
        return None

    def groups(self) -> list[Group]:
        """All param groups, also while an engine shows the optimizer only one of them."""
        return [entry.group for entry in self._entries if entry.group is not None]

    def positions(self, groups: Sequence[Group]) -> list[int]:
        """Where each of these param groups was given; what is not known counts by its place in `groups`."""
        return [self._position(group, index) for index, group in enumerate(groups)]

    def rebind(self, positions: Sequence[int], groups: Sequence[Group]) -> None:
        """Take new dicts for the param groups at these positions, as loading makes them."""
        for position, group in zip(positions, groups, strict=True):
            if position < len(self._entries):
                self._entries[position].group = group

    def names(self) -> list[str]:
        """Names of all parameters, or their positions where none were given."""
        return [info.name for entry in self._entries for info in entry.infos]

    def of_groups(self, groups: Sequence[Group]) -> list[list[tuple[str, Any]]]:
        """Names and shapes of param groups as they stand, which may have been removed or reordered, for pickling."""
        state = []
        for index, group in enumerate(groups):
            found = [
                self.info(param) or self.info_by_place(param, group, index, place)
                for place, param in enumerate(group["params"])
            ]
            state.append([(info.name, info.shape) for info in found if info is not None])
        return state

    @classmethod
    def restored(cls, state: list[list[tuple[str, Any]]], groups: Sequence[Group]) -> Roster:
        """Make the roster of unpickled or copied param groups from what `of_groups` returned."""
        roster = cls()
        for infos, group in zip(state, groups, strict=True):
            entry = GroupEntry(group, [ParamInfo(*fields) for fields in infos], [])
            entry.originals = [weakref.ref(param) for param in group["params"]]
            roster._entries.append(entry)
            for info, param in zip(entry.infos, group["params"], strict=False):
                roster._known[id(param)] = (weakref.ref(param), info)
        return roster

    def _entry(self, group: Group, index: int) -> GroupEntry | None:
        position = self._position(group, index)
        return self._entries[position] if position < len(self._entries) else None

    def _position(self, group: Group, index: int) -> int:
        return next((place for place, entry in enumerate(self._entries) if entry.group is group), index)


def _shape(param: Tensor) -> Any:
    # DeepSpeed's zero.Init leaves an empty placeholder and keeps the real shape here.
    return getattr(param, "ds_shape", param.shape)
