"""An adapter's options: in the base's param groups under names with a prefix, and as scalers read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gradscale.adapter.one_tensor import Group
from gradscale.optim.layer_rows import KEY
from gradscale.optim.members import Member
from gradscale.optim.rule import Scaler
from gradscale.option_tables import COMMON
from gradscale.options import Option, OptionError, check_options, nearest
from gradscale.presets import NAME, expanded, takes_presets


class Options(dict[str, Any]):
    """The options of one param group, by the names that scalers read.

    Attributes:
        group: the param group.
    """

    group: Group


class OptionViews:
    """Options of all param groups.

    Args:
        prefix: of names in param groups.
        scaler: the scaler, which has the options.
        given: those that the adapter was given, without prefix.
        others: options of the adapter besides the scaler's.

    Raises:
        OptionError: one is unknown or out of range.
    """

    def __init__(
        self, prefix: str, scaler: Scaler, given: Mapping[str, Any], others: Mapping[str, Option] = MappingProxyType({})
    ) -> None:
        self._prefix, self._scaler = prefix, scaler
        # `scaled` is a group's own.
        self._table: dict[str, Option] = {
            **scaler.options,
            **others,
            "scaled": COMMON["scaled"],
            "total_steps": COMMON["total_steps"],
        }
        defaults = {name: option.default for name, option in self._table.items()}
        self._defaults = check_options({**defaults, **given}, self._table, owner=prefix.rstrip("_").upper())
        self._views: dict[int, Options] = {}

    def checked(self, group: Group) -> dict[str, Any]:
        """Return the adapter's options of a param group, with its prefix: its own ones, and else the adapter's.

        Raises:
            OptionError: one is unknown or out of range, or they contradict each other.
        """
        start = len(self._prefix)
        own = {key[start:]: value for key, value in group.items() if key.startswith(self._prefix)}
        own.pop("steps", None)
        if takes_presets(self._table):
            own = expanded(own)
        for name in own:
            if name not in self._table:
                hint = nearest(name, self._table)
                raise OptionError(
                    f"unknown option {self._prefix}{name} of a param group{hint or '.'} Known, each with the prefix "
                    f"{self._prefix}: {', '.join(self._table)}"
                )
        values = {**self._defaults, **check_options(own, self._table, owner="a param group")}
        self._scaler.check(values)
        steps = group.get(f"{self._prefix}steps", 0)
        return {**{f"{self._prefix}{name}": value for name, value in values.items()}, f"{self._prefix}steps": steps}

    def update(self, group: Group, own: Mapping[str, Any]) -> None:
        """Enter checked options into a param group, in which they stand for its preset too."""
        if takes_presets(self._table):
            group.pop(f"{self._prefix}{NAME}", None)
        group.update(own)

    def of(self, group: Group) -> Options:
        """Return the options of a param group as they stand now: users change them between two steps."""
        view = self._views.get(id(group))
        if view is None or view.group is not group:
            view = self._views[id(group)] = Options()
            view.group = group
        view.update({name: group[f"{self._prefix}{name}"] for name in self._table})
        return view

    def of_member(self, member: Member) -> Options:
        """Return the options that a member was made with."""
        assert isinstance(member.group, Options)
        return member.group

    def set(self, name: str, value: Any, groups: Sequence[Group]) -> None:
        """Set an option everywhere."""
        self._defaults[name] = value
        for group in groups:
            group[f"{self._prefix}{name}"] = value

    def filled(self, state_dict: Mapping[str, Any], groups: Sequence[Group]) -> list[Group]:
        """Return the saved param groups, with what is missing from the groups as they are, and without layers' state.

        Raises:
            ValueError: a saved option is wrong.
        """
        saved_groups = state_dict.get("param_groups", [])
        if len(saved_groups) != len(groups):
            return list(saved_groups)  # the base refuses them
        filled = []
        for saved, group in zip(saved_groups, groups, strict=True):
            own = {key: value for key, value in group.items() if key.startswith(self._prefix)}
            steps = saved.get(f"{self._prefix}steps", 0)
            if not isinstance(steps, int) or steps < 0:
                raise ValueError(
                    f"the loaded state has {self._prefix}steps={steps!r}, expected a number of steps. "
                    "Nothing was loaded."
                )
            merged = {**own, **saved, f"{self._prefix}steps": steps}
            merged.pop(f"{self._prefix}{KEY}", None)
            try:
                filled.append({**merged, **self.checked(merged)})
            except OptionError as error:
                raise ValueError(f"the loaded state has {error}. Nothing was loaded.") from None
        return filled

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": {}}
