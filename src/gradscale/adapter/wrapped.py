"""The optimizer around another one: the base's param groups and state, with the adapter's options and state in them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from gradscale.adapter.options import OptionViews
from gradscale.adapter.own_state import OwnState
from gradscale.adapter.traits import Traits, traits_of
from gradscale.optim.members import Member, MemberTable
from gradscale.optim.model_ends import end_names, which_layers
from gradscale.optim.param_groups import group_members, names_of
from gradscale.optim.rule import Scaler
from gradscale.optim.scaled import ScaledOptimizer
from gradscale.options import DEFERRED, Integer, Option, OptionError, check_option
from gradscale.sharding.roster import Roster


class Wrapped(Optimizer):
    """An optimizer that is known by its base's param groups and state.

    `param_groups` and `state` are the base's own, so that schedulers, trainers and engines find what they look for. The
    adapter's options stand in the param groups under names with a prefix; its state is beside the base's, and joins it
    in `state_dict()`.

    Attributes:
        prefix: of its names in param groups and in saved state.
        scaler: the scaler.
        own_options: options of a param group besides the scaler's.
        base_optimizer: the optimizer that is wrapped.
    """

    prefix: ClassVar[str]
    scaler: ClassVar[Scaler]
    own_options: ClassVar[Mapping[str, Option]] = MappingProxyType({})
    base_optimizer: Optimizer | None = None

    def __init__(self, base_optimizer: Optimizer, options: Mapping[str, Any], module: nn.Module | None) -> None:
        name = type(self).__name__
        if not isinstance(base_optimizer, Optimizer):
            raise OptionError(
                f"base_optimizer of type {type(base_optimizer).__name__} is not allowed: expected a "
                "torch.optim.Optimizer, made of the parameters that it is to train"
            )
        if isinstance(base_optimizer, Wrapped | ScaledOptimizer):
            raise OptionError(f"{name} cannot wrap {type(base_optimizer).__name__}, which scales its updates already")
        if module is not None and not isinstance(module, nn.Module):
            raise OptionError(f"module={module!r} is not allowed: expected a torch.nn.Module")
        if "scope" in options and "scope" in self.scaler.options:
            options = {**options, "scope": which_layers(options["scope"], known=module is not None)}
        self._options = OptionViews(self.prefix, self.scaler, options, self.own_options)
        # Weakly: it would keep parameters alive that an engine replaces.
        self._module = None if module is None else weakref.ref(module)
        # Before anything is changed: groups may say something of their own, and no optimizer may be left half wrapped.
        checked = [self._checked(group) for group in base_optimizer.param_groups]
        traits = [traits_of(base_optimizer, group) for group in base_optimizer.param_groups]
        # torch's constructor wants parameters. It gets one that is forgotten as soon as the base is there.
        super().__init__([nn.Parameter(torch.empty(1))], {})
        for group, own in zip(base_optimizer.param_groups, checked, strict=True):
            self._options.update(group, own)
        self.base_optimizer = base_optimizer
        self.defaults = base_optimizer.defaults
        self._traits = traits
        self._own = self._make_own_state()
        self._roster = Roster()
        names = names_of(module)
        for group in base_optimizer.param_groups:
            self._roster.add_group(group, [(given or names.get(p), p) for given, p in group_members(group)])
        self._end_names = end_names(module, self._roster)
        self._reset()

    def _checked(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return the adapter's options of a param group, checked, with layers that depend on the model decided."""
        name = f"{self.prefix}scope"
        if name in group and "scope" in self.scaler.options:
            group = {**group, name: which_layers(group[name], known=self._model() is not None)}
        return self._options.checked(group)

    def _model(self) -> nn.Module | None:
        module = getattr(self, "_module", None)  # an adapter that was copied or unpickled has none
        return None if module is None else module()

    def _make_own_state(self) -> OwnState:
        return OwnState(self.prefix, self.scaler)

    def _reset(self) -> None:
        """Make anew what is not saved."""
        self._table = MemberTable(
            self._roster, self.scaler, self._options.of, tuple(self.own_options), ends=self._end_names
        )
        self._took_state = False  # from load_state_dict

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the base, with the adapter's options in them."""
        return self.__dict__["_nobodys"] if self.base_optimizer is None else self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if self.base_optimizer is None:
            self.__dict__["_nobodys"] = groups
        else:
            self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """That of the base."""
        return {} if self.base_optimizer is None else self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        if self.base_optimizer is not None:
            self.base_optimizer.state = state

    @property
    def traits(self) -> list[Traits]:
        """What was found out of the base, for each param group."""
        return list(self._traits)

    @property
    def waits_for_total_steps(self) -> bool:
        """Whether the length of the run was promised and has not come."""
        return any(group[f"{self.prefix}total_steps"] == DEFERRED for group in self.param_groups)

    def set_total_steps(self, total_steps: int) -> None:
        """Set the length of the run, in optimizer steps, to which fractional intervals refer.

        Raises:
            OptionError: it is not an integer of at least 1.
        """
        checked = check_option("total_steps", total_steps, Option(Integer(1), None, "optimizer steps of the run"))
        self._options.set("total_steps", checked, self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group to the base; the adapter's options in it are checked before anything is changed.

        Raises:
            OptionError: an option is out of range, or the base's updates of this group cannot be scaled.
        """
        if self.base_optimizer is None:
            return super().add_param_group(param_group)
        base = self.base_optimizer
        own = self._checked(param_group)
        own[f"{self.prefix}steps"] = max((int(group[f"{self.prefix}steps"]) for group in self.param_groups), default=0)
        base.add_param_group({**param_group, **own})
        added = base.param_groups[-1]
        self._options.update(added, own)
        try:
            self._traits.append(traits_of(base, added))
        except OptionError:
            base.param_groups.pop()
            raise
        names = names_of(self._model())
        self._roster.add_group(added, [(given or names.get(p), p) for given, p in group_members(added)])
        return None

    def _members(self) -> Iterator[Member]:
        for index, group in enumerate(self.param_groups):
            for place, param in enumerate(group["params"]):
                yield self._table.member(param, group, index, place)

    def _traits_of(self, group: dict[str, Any]) -> Traits:
        return self._traits[self._roster.positions([group])[0]]

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state, with the adapter's joined to that of each parameter."""
        assert self.base_optimizer is not None
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = self._own.joined(self.base_optimizer.state_dict(), self.param_groups, self._table.member)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state as saved by `state_dict()`, or by the plain base (whose layers then start without a scale).

        Raises:
            ValueError: the state does not fit the parameters, or is damaged. Nothing has changed then.
        """
        assert self.base_optimizer is not None
        state_dict = copy.copy(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        unused = not any(group.get(f"{self.prefix}steps", 1) for group in state_dict.get("param_groups", ()))
        groups = self._options.filled(state_dict, self.param_groups)
        members = list(self._members())
        of_base, own = self._own.split(state_dict, groups, members)
        positions = self._roster.positions(self.param_groups)
        self.base_optimizer.load_state_dict(of_base)
        self._loaded_into_base(of_base)
        self._roster.rebind(positions, self.param_groups)
        self._own.take(own, self.param_groups)
        self._own.restore(list(self._members()), complete=unused)
        self._took_state = True
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _loaded_into_base(self, state_dict: Mapping[str, Any]) -> None:
        """Put right what the base has made of the state that it has loaded."""

    def __getstate__(self) -> dict[str, Any]:
        return {
            "base_optimizer": self.base_optimizer,
            "defaults": self.defaults,
            "_traits": self._traits,
            "_options": self._options,
            "_end_names": self._end_names,
            "_own": self._own.by_place(self.param_groups),
            "_roster": self._roster.of_groups(self.param_groups),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take state from unpickling or copying."""
        own, roster = state.pop("_own"), state.pop("_roster")
        super().__setstate__(state)
        self._own = self._make_own_state()
        self._own.take(own, self.param_groups)
        self._roster = Roster.restored(roster, self.param_groups)
        self._reset()
