"""Tensors of `param_groups` as the step loop sees them: with their segments, and the layers among these to scale."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradscale.optim.model_ends import HIDDEN
from gradscale.optim.placement import refuse_sharded
from gradscale.optim.rule import Group, Layer, Scaler, State
from gradscale.sharding import engines
from gradscale.sharding.dtensor import local_part
from gradscale.sharding.roster import Roster
from gradscale.sharding.view import Segment, TensorView


@dataclass(frozen=True)
class Member:
    """A tensor of `param_groups` as `step()` finds it.

    Attributes:
        param: the tensor.
        group: its param group.
        view: what is in it.
        scaled: the segments of layers that are scaled; row i of a flat tensor's per-layer state is that of the i-th.
        recipes: how passes on it were called last time, where it is one strip.
        has_state: not empty once its state has been looked through, with these options.
        adapted: where in the view's segments the layers are whose update has a trust ratio.
        rated: where the layers are that have a learning rate of their own.
    """

    param: Tensor
    group: Group
    view: TensorView
    scaled: tuple[Segment, ...]
    recipes: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    has_state: list[bool] = field(default_factory=list, compare=False, repr=False)
    adapted: tuple[int, ...] = ()
    rated: tuple[int, ...] = ()

    @property
    def rows(self) -> int | None:
        """Scaled layers in a flat tensor; None for a tensor that is one layer."""
        return len(self.scaled) if self.view.flat else None

    @property
    def has_nothing_here(self) -> bool:
        """Whether an engine keeps all elements of this flat tensor on other ranks (and gives it no gradient here)."""
        return self.view.flat and self.param.numel() == 0

    def parts(self, state: State, momentum: str) -> Iterator[tuple[Segment, slice | None, State]]:
        """Yield each scaled segment, its place in the flattened tensor (None: all of it) and its part of the state.

        The parts share memory with the state. In that of a flat tensor is what belongs to the layer alone.
        """
        if not self.view.flat:
            yield from ((segment, None, state) for segment in self.scaled)
            return
        for row, segment in enumerate(self.scaled):
            place = slice(segment.start, segment.start + segment.length)
            per_element = state[momentum].shape if momentum in state else self.param.shape
            part = {}
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == per_element:
                    part[key] = value[place]
                elif isinstance(value, Tensor) and value.dim() > 1:
                    part[key] = value[row]
            yield segment, place, part


@dataclass
class _Known:
    param: weakref.ref[Tensor]
    shape: torch.Size
    view: TensorView
    checked: bool = False
    member: Member | None = None  # the last one made of it
    options: tuple[Any, ...] = ()  # at that time


class MemberTable:
    """Finds the members of param groups; what engines did is read once per tensor."""

    def __init__(
        self,
        roster: Roster,
        scaler: Scaler,
        options_of: Callable[[Group], Group] = lambda group: group,
        others: Sequence[str] = (),
        adapts: Callable[[torch.Size, Group], bool] | None = None,
        rated: Collection[str] = (),
        ends: Collection[str] = (),
    ) -> None:
        """Make the table.

        Args:
            roster: what the optimizer was given.
            scaler: the scaler.
            options_of: the options of a param group, by the names that scalers read.
            others: options besides the scaler's that decide what state there is.
            adapts: see `BaseRule.adapts`; None where no layer has a trust ratio of its update.
            rated: names of layers that have a learning rate of their own.
            ends: names of input embedding and output head, which `scope="hidden"` leaves alone.
        """
        self._adapts = adapts
        self._rated = frozenset(rated)
        self._ends = frozenset(ends)
        self._roster = roster
        self._scaler = scaler
        self._options_of = options_of
        self._deciding = tuple(dict.fromkeys(("scaled", *scaler.options, *others)))
        self._views: dict[int, _Known] = {}

    def member(self, param: Tensor, group: Group, index: int, place: int, options: Group | None = None) -> Member:
        """Return the member that stands at this place of `param_groups`.

        Args:
            param: the tensor.
            group: its param group.
            index: where the group stands.
            place: where the tensor stands in the group.
            options: the group whose options count, if it is another.

        Raises:
            UnsupportedShardingError: an engine that is not supported has put the tensor there, or one that an option
                does not go with.
        """
        options = self._options_of(group) if options is None else options
        return self._member(param, group, index, place, options, self._values(options))

    def members(self, groups: Sequence[Group]) -> list[Member]:
        """Return all members of param groups, in order. Raises as `member`."""
        members = []
        for index, group in enumerate(groups):
            options = self._options_of(group)
            values = self._values(options)
            members += [
                self._member(param, group, index, place, options, values) for place, param in enumerate(group["params"])
            ]
        return members

    def training_step(self, members: list[Member]) -> list[Member]:
        """Return the members that make one training step with these, for which the engine may call `step()` apart."""
        apart = next((member.view.stepped_apart for member in members if member.view.stepped_apart), None)
        if apart is None:
            return members
        together = []
        for tensor, original in apart():
            group = self._roster.group_of(original)
            assert group is not None  # the tensor's view has found it as well
            together.append(self.member(tensor, group, -1, 0))
        return together

    def unchecked(self, members: list[Member]) -> list[Member]:
        """Return the members that are sharded and have not been checked."""
        return [
            member
            for member in members
            if not self._views[id(member.param)].checked and (member.view.flat or member.view.process_groups)
        ]

    def mark_checked(self, members: list[Member]) -> None:
        """Enter that members have been checked. One that was refused is checked, and refused, at every step."""
        for member in members:
            self._views[id(member.param)].checked = True

    def _values(self, group: Group) -> tuple[Any, ...]:
        """Return all that decides what is scaled, and what state there is: users change options between two steps."""
        return tuple([group[name] for name in self._deciding])

    def _member(
        self, param: Tensor, group: Group, index: int, place: int, options: Group, values: tuple[Any, ...]
    ) -> Member:
        known = self._known(param, group, index, place)
        member = known.member
        if member is None or member.group is not options or known.options != values:
            segments, adapts = known.view.segments, self._adapts
            left = self._ends if options.get("scope") == HIDDEN else ()
            scaled = tuple(
                [one for one in segments if one.name not in left and self._scaler.scales(one.shape, options)]
            )
            if scaled:
                refuse_sharded(known.view, param.device, options)
            adapted = [i for i, one in enumerate(segments) if adapts is not None and adapts(one.shape, options)]
            rated = [i for i, one in enumerate(segments) if one.name in self._rated]
            member = known.member = Member(
                param, options, known.view, scaled, adapted=tuple(adapted), rated=tuple(rated)
            )
            known.options = values
        return member

    def _known(self, param: Tensor, group: Group, index: int, place: int) -> _Known:
        known = self._views.get(id(param))
        if known is None or known.param() is not param or known.shape != param.shape:
            view = engines.view(param, group, index, place, self._roster)
            known = self._views[id(param)] = _Known(weakref.ref(param), param.shape, view)
        return known


def local_state(state: State) -> State:
    """State of a tensor with the local parts of its tensors, which share memory with it."""
    return {key: local_part(value) if isinstance(value, Tensor) else value for key, value in state.items()}


def layers_of(
    member: Member,
    state: State,
    momentum: str,
    *,
    due: bool,
    later: Mapping[tuple[int, int], Tensor] | None = None,
    ahead: Callable[[slice | None, State], Tensor] | None = None,
) -> Iterator[Layer]:
    """Yield the scaled layers of a member, as scalers take them.

    Args:
        member: the member.
        state: its local state.
        momentum: key of the momentum in it.
        due: whether the scales of its group move now.
        later: of layers whose labels a pass writes afterwards, what tells it to, by id of the tensor and row.
        ahead: makes the momentum that the step will leave, of a layer's place and part of the state (see `parts`); None
            where it is in the state.
    """
    for row, (segment, place, part) in enumerate(member.parts(state, momentum)):
        yield Layer(
            name=segment.name,
            numel=segment.numel,
            process_groups=segment.process_groups,
            momentum=part[momentum] if momentum in part else local_part(member.param).new_empty(0),
            state=part,
            group=member.group,
            due=due,
            relabel=None if later is None else later.get((id(member.param), row)),
            ahead=None if ahead is None else functools.partial(ahead, place, part),
        )
