"""ALSDGC, the controller: what it is told after each backward pass, and what it answers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from gradscale.control import saved
from gradscale.control.decision import Decision, clip_coefficient
from gradscale.control.faithful import FaithfulRules
from gradscale.control.options import ALSDGC_OPTIONS, NormType, checked
from gradscale.control.robust import RobustRules
from gradscale.control.tally import Tally
from gradscale.options import Option

_VERSION = 1
_Rules: TypeAlias = type[RobustRules] | type[FaithfulRules]
_RULES: Mapping[str, _Rules] = MappingProxyType({"robust": RobustRules, "faithful": FaithfulRules})


class ALSDGC:
    """Adaptive loss scaling with dynamic gradient clipping.

    Call `observe` once per optimizer step, after the backward pass, and do what the decision says. The controller is
    plain Python: it knows nothing of tensors, ranks or trainers, and the same numbers always give the same decisions.

    The robust mode clips at what is unusual for the last norms (median and median deviation of their logarithm), skips
    steps that are not finite or extreme in norm and loss, and lowers the loss scale only for overflows that are the
    scale's fault. The faithful mode follows the paper's listed rules; it is there to compare with.

    Args:
        mode: "robust" or "faithful".
        norm_type: p of the gradient norm that `observe` is given; the statistics of one norm say nothing of another.
        loss_scale: loss scale to begin with, for float16; None: not managed.
        growth_factor: of the loss scale.
        backoff_factor: of the loss scale, after an overflow.
        min_loss_scale: floor.
        max_loss_scale: ceiling; None: 2^24, in faithful mode 2^16 as listed.
        window: steps.
        warmup_steps: steps with the fixed threshold.
        warmup_threshold: that threshold, in units of the norm.
        clip_deviations: standard deviations of ln(norm) above its median to clip at.
        deviation_floor: least standard deviation of ln(norm), and of the loss as a share of its median.
        min_threshold: in units of the norm.
        max_threshold: in units of the norm; None: no bound.
        reseed_after: steps beyond the usual range that begin new statistics.
        reseed_span: steps among which these have to be.
        skip_norm_deviations: an extreme norm is so far above the median.
        skip_loss_deviations: an extreme loss is so far above the median.
        max_skips: steps in a row skipped because both are extreme.
        growth_interval: steps without overflow before the loss scale grows.
        retry_interval: steps without overflow after a scale failed before it is tried again.
        forgive_interval: steps without overflow that earn one overflow its forgiveness.
        confirm_interval: steps within which a second overflow is the scale's fault for certain.
        raise_after: overflows in a row at the floor after which `observe` raises FloatingPointError; None: never.
        initial_threshold: theta_0 of the faithful mode, in units of the norm.
        adjustment_factor: of the faithful mode's threshold.

    Raises:
        OptionError: an option is not allowed, of the other mode, or contradicts another.
    """

    options: ClassVar[Mapping[str, Option]] = ALSDGC_OPTIONS

    def __init__(
        self,
        mode: str = "robust",
        *,
        norm_type: float | str = 2.0,
        loss_scale: float | None = None,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        min_loss_scale: float = 1.0,
        max_loss_scale: float | None = None,
        window: int = 128,
        warmup_steps: int = 20,
        warmup_threshold: float = 1.0,
        clip_deviations: float = 3.0,
        deviation_floor: float = 0.08,
        min_threshold: float = 0.0,
        max_threshold: float | None = None,
        reseed_after: int = 12,
        reseed_span: int = 16,
        skip_norm_deviations: float = 8.0,
        skip_loss_deviations: float = 8.0,
        max_skips: int = 3,
        growth_interval: int = 50,
        retry_interval: int = 2000,
        forgive_interval: int = 50,
        confirm_interval: int = 5,
        raise_after: int | None = None,
        initial_threshold: float = 1.0,
        adjustment_factor: float = 1.1,
    ) -> None:
        given = locals()
        self._given, self._options = checked({name: given[name] for name in ALSDGC_OPTIONS})
        self._rules: RobustRules | FaithfulRules = self._rules_type(self._options)
        self._tally = Tally()
        self._tally.scale(self._rules.loss_scale)
        if self.mode == "faithful":
            warnings.warn(
                "ALSDGC(mode='faithful') follows the rules as the paper lists them, for comparison: its threshold goes "
                "to norm / lr, so that nothing is clipped, and its loss scale overflows every other step at a ceiling. "
                "Train with mode='robust'.",
                UserWarning,
                stacklevel=2,
            )

    @property
    def _rules_type(self) -> _Rules:
        return _RULES[self.mode]

    @property
    def resolved(self) -> Mapping[str, Any]:
        """All options with their values, defaults filled in."""
        return MappingProxyType(self._options)

    @property
    def mode(self) -> str:
        """Either "robust" or "faithful"."""
        return str(self._options["mode"])

    @property
    def norm_type(self) -> float:
        """The p of the gradient norm that `observe` expects."""
        return float(self._options["norm_type"])

    @property
    def threshold(self) -> float:
        """Clip norm of the next step, as far as it is known before the step: for engines that clip by themselves."""
        return self._rules.threshold

    @property
    def loss_scale(self) -> float | None:
        """Loss scale of the next step; None where it is not managed."""
        return self._rules.loss_scale

    @property
    def steps(self) -> int:
        """How often `observe` was called."""
        return self._tally.steps

    @property
    def skipped(self) -> int:
        """How many of these steps were skipped."""
        return sum(self._tally.skipped.values())

    def observe(
        self,
        *,
        norm: float | None,
        loss: float | None = None,
        found_inf: bool = False,
        lr: float | None = None,
        group_norms: Sequence[float] | None = None,
    ) -> Decision:
        """Take in one optimizer step and decide about it. Bad data never raises.

        Args:
            norm: p-norm of the unscaled gradients of all ranks, before clipping; may be NaN or infinite. None, or below
                0 as DeepSpeed has it: not known, and the clip statistics stay as they are.
            loss: mean over ranks, unscaled; may be NaN or infinite. None: not known.
            found_inf: some unscaled gradient is not finite. A norm that is not finite says so too.
            lr: learning rate; the faithful mode needs it.
            group_norms: the same norm of each param group, always as many.

        Returns:
            The decision: the threshold is for this step, the loss scale for the next.

        Raises:
            ValueError: the number of groups has changed, or the faithful mode is given no lr.
            FloatingPointError: the option raise_after asks for it.
        """
        known = None if norm is None or norm < 0 else float(norm)
        groups = None if group_norms is None else [float(one) for one in group_norms]
        decision = self._rules.observe(known, None if loss is None else float(loss), bool(found_inf), lr, groups)
        self._tally.count(decision, clipped=not decision.skip and _clips(decision, known, groups))
        if self._rules.exhausted:
            raise FloatingPointError(
                f"raise_after={self._options['raise_after']} overflows in a row at "
                f"min_loss_scale={self._options['min_loss_scale']:g}: gradients are not finite at any scale"
            )
        return decision

    def state_dict(self) -> dict[str, Any]:
        """Return the state: dicts, lists, strings and finite numbers, which JSON keeps exactly."""
        return {
            "version": _VERSION,
            "mode": self.mode,
            "norm_type": "inf" if math.isinf(self.norm_type) else self.norm_type,
            "rules": self._rules.state_dict(),
            "counters": self._tally.as_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. Options stay as they are now.

        A window that is shorter now keeps the newest values. The loss scale is taken over if both sides manage one;
        otherwise it begins as constructed, since clip statistics are of unscaled gradients and do not depend on it.

        Raises:
            ValueError: the state is damaged, or of another version, mode or norm. Nothing has changed then.
        """
        if isinstance(state, Mapping) and state.get("version", _VERSION) != _VERSION:
            raise ValueError(f"version={state['version']!r} is not supported, expected {_VERSION}")
        state = saved.section(state, "state", ("version", "mode", "norm_type", "rules", "counters"))
        if state["mode"] != self.mode:
            raise ValueError(f"mode={state['mode']!r} was saved, and this controller has mode={self.mode!r}")
        try:
            norm_type = NormType().check(state["norm_type"])
        except ValueError:
            raise ValueError(f"norm_type={state['norm_type']!r} is not {NormType.allowed}") from None
        if norm_type != self.norm_type:
            raise ValueError(f"norm_type={norm_type:g} was saved, and this controller has norm_type={self.norm_type:g}")
        rules = self._rules_type.from_state(state["rules"], self._options)
        tally = Tally.from_state(state["counters"])
        self._rules, self._tally = rules, tally

    def summary(self) -> dict[str, Any]:
        """Return the counters: steps, clipped, reseeds, skipped by reason, lowest_scale and highest_scale."""
        return self._tally.as_dict()

    def __repr__(self) -> str:
        changed = [f"{name}={value!r}" for name, value in self._given.items() if value != self.options[name].default]
        return f"ALSDGC({', '.join(changed)})"


def _clips(decision: Decision, norm: float | None, groups: Sequence[float] | None) -> bool:
    if norm is not None and decision.coefficient(norm) < 1:
        return True
    pairs = zip(decision.group_thresholds or (), groups or (), strict=True)
    return any(clip_coefficient(threshold, group) < 1 for threshold, group in pairs)
