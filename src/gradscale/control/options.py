"""The options of ALSDGC: one table, read by the constructor, the command line and the documentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gradscale.options import Choice, Integer, Maybe, Option, OptionError, Real, check_options

MODES = ("robust", "faithful")


@dataclass(frozen=True)
class NormType:
    """The p of a p-norm: a number above 0, infinity or "inf"."""

    allowed: str = "a number above 0, or inf"

    def check(self, value: Any) -> float:  # noqa: D102
        if value == "inf" or value == math.inf:
            return math.inf
        return Real(0.0, low_open=True).check(value)


_STEPS = Integer(1)
_POSITIVE = Real(0.0, low_open=True)

SHARED: Mapping[str, Option] = MappingProxyType(
    {
        "mode": Option(Choice(MODES), "robust", "robust rules, or the paper's listed ones as a reference"),
        "norm_type": Option(NormType(), 2.0, "p of the gradient norm that is given; inf: the largest element"),
        "loss_scale": Option(Maybe(_POSITIVE), None, "loss scale to begin with (65536 is usual); None: manage none"),
        "growth_factor": Option(Real(1.0, low_open=True), 2.0, "what the loss scale is multiplied by as it grows"),
        "backoff_factor": Option(
            Real(0.0, 1.0, low_open=True, high_open=True), 0.5, "what it is multiplied by after an overflow"
        ),
        "min_loss_scale": Option(_POSITIVE, 1.0, "floor of the loss scale"),
        "max_loss_scale": Option(Maybe(_POSITIVE), None, "its ceiling; None: 2^24 (faithful: 2^16, as listed)"),
    }
)

ROBUST: Mapping[str, Option] = MappingProxyType(
    {
        "window": Option(Integer(8), 128, "accepted steps whose norms make the statistics"),
        "warmup_steps": Option(Integer(4), 20, "accepted steps before the statistics set the threshold"),
        "warmup_threshold": Option(_POSITIVE, 1.0, "clip norm until then (units of the norm)"),
        "clip_deviations": Option(_POSITIVE, 3.0, "standard deviations of ln(norm) above its median to clip at"),
        "deviation_floor": Option(
            _POSITIVE,
            0.08,
            "least standard deviation of ln(norm) (0.08 is 8 % of the norm), and of loss / median loss",
        ),
        "min_threshold": Option(Real(0.0), 0.0, "the threshold is never lower (units of the norm)"),
        "max_threshold": Option(Maybe(_POSITIVE), None, "never higher (units of the norm); None: no bound"),
        "reseed_after": Option(_STEPS, 12, "steps beyond the usual range, on one side, that begin new statistics"),
        "reseed_span": Option(_STEPS, 16, "steps among which these have to be"),
        "skip_norm_deviations": Option(_POSITIVE, 8.0, "a norm so many deviations above its median is extreme"),
        "skip_loss_deviations": Option(_POSITIVE, 8.0, "a loss so many deviations above its median is extreme"),
        "max_skips": Option(Integer(0), 3, "steps in a row skipped because norm and loss are extreme; 0: never"),
        "growth_interval": Option(_STEPS, 50, "steps without overflow before the loss scale grows"),
        "retry_interval": Option(_STEPS, 2000, "steps without overflow after a scale failed before it is tried again"),
        "forgive_interval": Option(_STEPS, 50, "steps without overflow that earn one overflow its forgiveness"),
        "confirm_interval": Option(
            _STEPS, 5, "an overflow within so many good steps of another is the scale's fault for certain"
        ),
        "raise_after": Option(
            Maybe(_STEPS), None, "overflows in a row at the floor after which to raise FloatingPointError; None: never"
        ),
    }
)

FAITHFUL: Mapping[str, Option] = MappingProxyType(
    {
        "initial_threshold": Option(_POSITIVE, 1.0, "theta_0, threshold of the first step (units of the norm)"),
        "adjustment_factor": Option(Real(1.0, low_open=True), 1.1, "what the threshold is multiplied or divided by"),
    }
)

ALSDGC_OPTIONS: Mapping[str, Option] = MappingProxyType({**SHARED, **ROBUST, **FAITHFUL})
_CEILINGS = {"robust": 2.0**24, "faithful": 2.0**16}


def checked(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options in canonical type as they were given, and all of them with what None stands for filled in.

    Raises:
        OptionError: an option is unknown, not allowed, of the other mode, or contradicts another.
    """
    given = check_options(values, ALSDGC_OPTIONS, owner="ALSDGC")
    options = {name: option.default for name, option in ALSDGC_OPTIONS.items()} | given
    mode = options["mode"]
    for name, option in (FAITHFUL if mode == "robust" else ROBUST).items():
        if options[name] != option.default:
            other = next(one for one in MODES if one != mode)
            raise OptionError(f"{name}={options[name]!r} is an option of mode={other!r}, and mode is {mode!r}")
    if options["max_loss_scale"] is None:
        options["max_loss_scale"] = max(_CEILINGS[mode], options["min_loss_scale"])
    low, high, scale = options["min_loss_scale"], options["max_loss_scale"], options["loss_scale"]
    if low > high:
        raise OptionError(f"min_loss_scale={low:g} is above max_loss_scale={high:g}")
    if scale is not None and not low <= scale <= high:
        raise OptionError(
            f"loss_scale={scale:g} is not allowed: expected a number from min_loss_scale={low:g} to "
            f"max_loss_scale={high:g}"
        )
    if options["max_threshold"] is not None and options["min_threshold"] > options["max_threshold"]:
        raise OptionError(
            f"min_threshold={options['min_threshold']:g} is above max_threshold={options['max_threshold']:g}"
        )
    for name, most in (("warmup_steps", "window"), ("reseed_after", "reseed_span"), ("reseed_span", "window")):
        if options[name] > options[most]:
            raise OptionError(f"{name}={options[name]} is above {most}={options[most]}")
    return given, options
