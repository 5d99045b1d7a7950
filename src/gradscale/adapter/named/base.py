"""What the optimizers by name have in common: made of parameters instead of an optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from gradscale.adapter.sgg import SGG
from gradscale.optim.members import Member
from gradscale.optim.param_groups import as_groups, split_by_target
from gradscale.option_tables import ADAPTER, LEARNING_RATE
from gradscale.option_tables import SGG as SGG_TABLE
from gradscale.options import OptionError, check_option, check_options
from gradscale.presets import NAME, expanded
from gradscale.registry import get_entry
from gradscale.sharding.dtensor import is_dtensor
from gradscale.sharding.view import UnsupportedShardingError

_OF_SGG = frozenset({*SGG_TABLE, *ADAPTER, "total_steps", NAME})
_OF_GROUPS = _OF_SGG | {"scaled"}


class NamedAdapter(SGG):
    """Base class of SGG around an optimizer of another library, which is made here.

    Grouping, scales and what is kept are those of `gradscale.SGG`; options, their defaults and the library's name are
    those of the registry's entry. A param group may have any of the options, SGG's too, and `scaled=False`.

    Args:
        params: tensors, (name, tensor) pairs, or param groups of them.
        lr: learning rate.
        weight_decay: decoupled weight decay, which is not scaled; None is the library's default.
        module: the model; gives layers their names in reports and is needed by `target_modules`.
        target_modules: scale only the layers of these modules: a list of substrings of module names, a regular
            expression that matches a whole name, or "all-linear".
        **options: those of the entry, `preset`, and `total_steps`, the optimizer steps of the run.

    Raises:
        OptionError: (a ValueError) an option is unknown or out of range; the message says what is allowed.
        ImportError: the library is missing; the message says how to install it.
        ValueError: `target_modules` matches nothing.
    """

    name: ClassVar[str]
    # Whether the library steps layers of which each rank has a part, as FSDP2 makes them.
    takes_shards: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        weight_decay: float | None = None,
        *,
        module: nn.Module | None = None,
        target_modules: str | list[str] | None = None,
        **options: Any,
    ) -> None:
        entry, own = get_entry(self.name), type(self).__name__
        of_sgg = expanded({key: options.pop(key) for key in _OF_SGG if key in options and key not in ADAPTER})
        checked = check_options(options, entry.options, owner=own)
        values = {key: option.default for key, option in entry.options.items() if key not in SGG_TABLE} | checked
        sgg = {key: option.default for key, option in SGG_TABLE.items()} | of_sgg
        for check in entry.checks:
            check({**sgg, **values})
        check_option("lr", float(lr), LEARNING_RATE)
        if module is not None and not isinstance(module, nn.Module):
            raise OptionError(f"module={module!r} is not allowed: expected a torch.nn.Module")
        for library, requirement in entry.requires.items():
            _need(library, requirement, own)
        of_sgg |= {key: values.pop(key) for key in ADAPTER if key in values}
        given = as_groups(params)
        for group in given:
            check_options({key: group[key] for key in group if key in values}, entry.options, owner="a param group")
        groups = self._prepared(given, module, target_modules, values)
        decay = {} if weight_decay is None else {"weight_decay": weight_decay}
        base = self._make_base([with_prefix(group, self.prefix) for group in groups], {"lr": lr, **decay}, values)
        super().__init__(base, module=module, **of_sgg)

    def _prepared(
        self,
        groups: list[dict[str, Any]],
        module: nn.Module | None,
        target_modules: str | list[str] | None,
        values: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """Return the param groups, split where parameters of one are treated differently."""
        if target_modules is None:
            return groups
        if module is None:
            raise OptionError(f"target_modules={target_modules!r} needs module=, the model it selects from")
        return split_by_target(groups, module, target_modules)

    def _make_base(self, groups: list[dict[str, Any]], rates: dict[str, Any], values: dict[str, Any]) -> Optimizer:
        """Make the library's optimizer.

        Args:
            groups: its param groups.
            rates: `lr`, and `weight_decay` where it was given.
            values: every option of the base, checked.
        """
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `SGG`; options of SGG may stand in it without their prefix."""
        super().add_param_group(with_prefix(param_group, self.prefix))

    def _check(self, together: list[Member], updates: list[Member]) -> None:
        if not self.takes_shards and any(is_dtensor(member.param) for member in together):
            raise UnsupportedShardingError(
                f"{type(self.base_optimizer).__name__} cannot step a layer of which FSDP2 has left a part here: use "
                f"DDP, or an optimizer that can, such as sgg_adamw"
            )
        super()._check(together, updates)


def with_prefix(group: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return a param group in which options of SGG have the prefix that they have in the base's groups."""
    return {f"{prefix}{key}" if key in _OF_GROUPS else key: value for key, value in group.items()}


def _need(library: str, requirement: str, owner: str) -> None:
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f"{owner} needs {library} ({error}): pip install '{requirement}'") from error
