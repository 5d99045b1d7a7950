"""The robust loss scale: one overflow may be the data's fault, several near each other are the scale's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscale.control import saved
from gradscale.control.decision import FORGIVEN, OVERFLOW


class RobustLossScale:
    """A loss scale that grows fast, falls only for a reason, and remembers where it failed.

    * A scale is *proven* once it, or a larger one, has held for `growth_interval` good steps.
    * An overflow is *confirmed* as the scale's fault when the scale is not proven, or when it comes within
      `confirm_interval` good steps of another one. The scale is lowered and remembered as the one that failed; if it
      was proven, none is any more.
    * Any other overflow is forgiven if `forgive_interval` good steps have passed since the last one that was; if not,
      the scale is lowered too, but it is not remembered as failed: bad data may come often.
    * After `growth_interval` good steps since the scale last changed it grows. Where growth would reach the scale that
      failed, `retry_interval` good steps must have passed since the failure too.

    Before the first step no scale is proven: where to begin is a guess.

    Args:
        options: the robust options, checked, with a loss scale.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self.scale: float = options["loss_scale"]
        self._failed: float | None = None
        self._since_failed = 0
        self._good = 0  # steps since the scale last changed
        self._proven = 0.0
        self._since_overflow = options["confirm_interval"]
        self._since_forgiven = options["forgive_interval"]
        self._at_floor = 0  # overflows in a row that found the scale at its floor

    def good_step(self) -> None:
        """Count a step without overflow, and grow when it is time."""
        self._good += 1
        self._since_failed += 1
        self._since_overflow += 1
        self._since_forgiven += 1
        self._at_floor = 0
        options = self._options
        if self._good < options["growth_interval"]:
            return
        self._proven = max(self._proven, self.scale)
        larger = min(self.scale * options["growth_factor"], options["max_loss_scale"])
        too_early = (
            self._failed is not None and larger >= self._failed and self._since_failed < options["retry_interval"]
        )
        if larger > self.scale and not too_early:
            self._change(larger)

    def overflow(self) -> str:
        """Take in an overflow; return the reason under which the step is skipped."""
        options = self._options
        confirmed = self.scale > self._proven or self._since_overflow < options["confirm_interval"]
        self._since_overflow = 0
        if not confirmed and self._since_forgiven >= options["forgive_interval"]:
            self._since_forgiven = 0
            return FORGIVEN
        if confirmed:
            self._failed = self.scale
            self._since_failed = 0
            if self.scale <= self._proven:
                self._proven = 0.0  # what held before holds no longer
        lower = max(self.scale * options["backoff_factor"], options["min_loss_scale"])
        self._at_floor = 0 if lower < self.scale else self._at_floor + 1
        self._change(lower)
        return OVERFLOW

    @property
    def exhausted(self) -> bool:
        """Whether `raise_after` overflows in a row have found the scale at its floor."""
        limit = self._options["raise_after"]
        return limit is not None and self._at_floor >= limit

    def _change(self, scale: float) -> None:
        self.scale = scale
        self._good = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as numbers that JSON keeps exactly."""
        return {
            "scale": self.scale,
            "failed": self._failed,
            "since_failed": self._since_failed,
            "good": self._good,
            "proven": self._proven,
            "since_overflow": self._since_overflow,
            "since_forgiven": self._since_forgiven,
            "at_floor": self._at_floor,
        }

    @classmethod
    def from_state(cls, state: Any, options: Mapping[str, Any]) -> RobustLossScale:
        """Return the loss scale that was saved, within today's bounds.

        Raises:
            ValueError: the state is damaged. The message names the entry.
        """
        rule = cls(options)
        state = saved.section(state, "loss_scale", rule.state_dict())
        rule.scale = saved.bounded_scale(state, options)
        failed = state["failed"]
        rule._failed = None if failed is None else saved.number(failed, "failed", positive=True)
        rule._since_failed = saved.count(state, "since_failed")
        rule._good = saved.count(state, "good")
        rule._proven = saved.number(state["proven"], "proven")
        rule._since_overflow = saved.count(state, "since_overflow")
        rule._since_forgiven = saved.count(state, "since_forgiven")
        rule._at_floor = saved.count(state, "at_floor")
        return rule
