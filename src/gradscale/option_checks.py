"""What options must not say together, though each of them alone may: for constructors, and for `--optim_args`.

Standard library only, as the registry. Each function takes all options of a param group by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gradscale.options import OptionError

Check = Callable[[Mapping[str, Any]], None]


def check_sgd(options: Mapping[str, Any]) -> None:
    """Nesterov's momentum looks ahead along a momentum that is not dampened.

    Raises:
        OptionError: there is none, or it is.
    """
    if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
        raise OptionError(
            f"nesterov=True needs momentum above 0 and dampening=0, got momentum={options['momentum']} and "
            f"dampening={options['dampening']}"
        )


def check_dgs(options: Mapping[str, Any]) -> None:
    """Resets are of a running mean, and some forms divide by eps alone where there is no gradient.

    Raises:
        OptionError: there is no running mean to reset, eps is 0 in a form that needs it, or 1 is out of bounds.
    """
    for name in ("reset_every", "reset_spike"):
        if options[name] is not None and options["importance_decay"] == 0:
            raise OptionError(
                f"{name}={options[name]} needs a running importance to reset: set importance_decay above 0 (without "
                "it importance is today's gradient alone)"
            )
    own = options.get("importance_eps")
    if options["form"] in ("importance", "full") and (options["eps"] if own is None else own) == 0:
        name = "eps" if own is None else "importance_eps"
        hint = "; importance_eps above 0 allows it" if own is None and "importance_eps" in options else ""
        raise OptionError(
            f"{name}=0 is not allowed with form={options['form']!r}: where there is no gradient, 1 / 0{hint}"
        )
    low, high = options["factor_bounds"]
    if not low <= 1 <= high:
        raise OptionError(f"factor_bounds={(low, high)} is not allowed: expected 1 between the two")


def check_apollo(options: Mapping[str, Any]) -> None:
    """A factor for each channel needs a projection that leaves the channels, which are the longer side, as they are.

    Raises:
        OptionError: another projection is asked for.
    """
    if options["scale_type"] == "channel" and options["proj_type"] != "std":
        raise OptionError(
            f"scale_type='channel' with proj_type={options['proj_type']!r} is not allowed: only 'std' projects the "
            "shorter side of every layer; use it, or scale_type='tensor'"
        )
