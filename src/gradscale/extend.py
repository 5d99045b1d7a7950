"""What it takes to write a base or a scaler of one's own, and to give it a name for `--optim`.

The example in docs/bases.md has a base and a scaler in some 30 lines each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscale.integrations import registration
from gradscale.optim.adam_rule import AdamRule
from gradscale.optim.custom import CustomOptimizer, PlainRule, PlainScaler
from gradscale.optim.rule import BaseRule, Scaler, Slot
from gradscale.optim.sgd_rules import SGDRule
from gradscale.optim.sgg_scaler import SGGScaler
from gradscale.option_checks import check_sgg
from gradscale.options import Choice, Flag, Integer, Interval, Maybe, Option, Pair, Real
from gradscale.registry import SGG_TRAINER_DEFAULTS, OptimizerEntry, add_entry

__all__ = [
    "AdamRule",
    "BaseRule",
    "Choice",
    "CustomOptimizer",
    "Flag",
    "Integer",
    "Interval",
    "Maybe",
    "Option",
    "Pair",
    "PlainRule",
    "PlainScaler",
    "Real",
    "SGDRule",
    "SGGScaler",
    "Scaler",
    "Slot",
    "register",
]


def register(name: str, optimizer: type[CustomOptimizer], summary: str = "") -> None:
    """Give an optimizer a name for `--optim`, in this process.

    Call it before the script's argument parser is made. `--optim_args` takes the options of its base and its scaler,
    checked as those of the package's own.

    Args:
        name: the value of `--optim`: lower-case letters, digits and underscores.
        optimizer: the class.
        summary: one line for humans.

    Raises:
        TypeError: it is not a subclass of `CustomOptimizer`.
        ValueError: the name is taken, or is none.
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, CustomOptimizer)):
        raise TypeError(f"optimizer={optimizer!r} is not allowed: expected a subclass of CustomOptimizer")
    options = optimizer.options()
    groups = isinstance(optimizer.scaler, SGGScaler)
    defaults = SGG_TRAINER_DEFAULTS if groups else {}

    def check(given: Mapping[str, Any]) -> None:
        optimizer.base.check(dict(given))
        if groups:
            check_sgg(given)

    add_entry(OptimizerEntry(name, optimizer, summary, options, trainer_defaults=defaults, checks=(check,)))
    registration.extend_again()
