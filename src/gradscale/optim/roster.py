"""Names and original shapes of an optimizer's parameters, without keeping the parameters alive.

Engines replace parameters after the optimizer was made. accelerate's FSDP2 does so place by place and counts on the
originals being freed; what is found in a place where there was another parameter is known by that place.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Entry:
    """What is known of one parameter.

    Attributes:
        name: its name, or its position where the optimizer was given no names.
        shape: its shape when the optimizer was made; None of a lazy module's, which has none yet.
    """

    name: str
    shape: torch.Size | None


class Roster:
    """Entries by group and place; looked up by identity first, so that groups may be reordered or removed."""

    def __init__(self, groups: Sequence[Sequence[Entry]] = ()) -> None:
        self.groups: list[list[Entry]] = [list(group) for group in groups]
        self._known: dict[int, tuple[weakref.ref[Tensor], Entry]] = {}

    def add_group(self, members: Sequence[tuple[str | None, Tensor]]) -> None:
        """Enter the members of a new param group, with their names if they have any."""
        first = sum(len(group) for group in self.groups)
        entries = [
            Entry(name or f"parameter {first + offset}", None if is_lazy(param) else param.shape)
            for offset, (name, param) in enumerate(members)
        ]
        self.groups.append(entries)
        for entry, (_, param) in zip(entries, members, strict=True):
            self._remember(param, entry)

    def find(self, param: Tensor, group: int, place: int) -> Entry | None:
        """Return the entry of a parameter that stands at this place now; None if nothing is known of it."""
        known = self._known.get(id(param))
        if known is not None and known[0]() is param:
            return known[1]
        if group < len(self.groups) and place < len(self.groups[group]):
            entry = self.groups[group][place]
            self._remember(param, entry)
            return entry
        return None

    def of_groups(self, groups: Sequence[Mapping[str, Any]]) -> Roster:
        """Return the roster of param groups as they stand, which may have been removed or reordered."""
        found = [
            [self.find(param, index, place) for place, param in enumerate(group["params"])]
            for index, group in enumerate(groups)
        ]
        return Roster([[entry for entry in entries if entry is not None] for entries in found])

    def _remember(self, param: Tensor, entry: Entry) -> None:
        self._known[id(param)] = (weakref.ref(param), entry)

    def __getstate__(self) -> list[list[tuple[str, torch.Size | None]]]:
        return [[(entry.name, entry.shape) for entry in group] for group in self.groups]

    def __setstate__(self, state: list[list[tuple[str, torch.Size | None]]]) -> None:
        self.groups = [[Entry(*fields) for fields in group] for group in state]
        self._known = {}
