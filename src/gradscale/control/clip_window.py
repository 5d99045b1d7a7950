"""The robust clip threshold: what is usual for the norm, by median and median deviation of its logarithm."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from gradscale.control import saved
from gradscale.control.spread import center_and_deviation

_LARGEST_LOG = math.log(1.7976931348623157e308)
# A deviation that few values have shown is uncertain, so the range is wider by 4 / n: with 16 values (after the
# statistics began anew) by a quarter, with 128 by 3 %.
_FEW = 4.0


class ClipWindow:
    """Norms of the last accepted steps, and the threshold that they give.

    With x = ln(norm), its median m over the window and sd = max(1.4826 MAD, deviation_floor), the threshold is
    exp(m + reach) with reach = clip_deviations * sd. Gradients beyond it are the less to be trusted the further they
    are: with x = m + d they are clipped to exp(m + reach^2 / d). Into the window they enter as m + reach, so that a
    spike moves the statistics as little as a large ordinary norm does. Where `reseed_after` of the last
    `reseed_span` steps lie beyond, on one side, the norm has moved for good, and the window begins anew
    with them as they are.

    A norm of 0 has no logarithm and says nothing of what is usual: it is accepted and changes nothing.

    Args:
        options: the robust options, checked.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._logs: deque[float] = deque(maxlen=options["window"])
        self._raw: deque[float] = deque(maxlen=options["reseed_span"])
        self._sides: deque[int] = deque(maxlen=options["reseed_span"])
        self._warm = False
        self._range: tuple[float, float] | None = None  # m and sd, until the window changes

    @property
    def warm(self) -> bool:
        """Whether the window sets the threshold: `warmup_steps` norms have been accepted."""
        return self._warm

    @property
    def threshold(self) -> float:
        """Clip norm, in units of the norm."""
        return self._bounded(self._usual()[0] + self._reach() if self._warm else None)

    def threshold_for(self, norm: float) -> float:
        """Return the clip norm for gradients of this norm: lower than the threshold for what is far beyond it."""
        if self._warm and norm > 0:
            median, reach = self._usual()[0], self._reach()
            beyond = math.log(norm) - median
            if beyond > reach:
                return self._bounded(median + reach * (reach / beyond))
        return self.threshold

    def _bounded(self, log: float | None) -> float:
        threshold: float = self._options["warmup_threshold"] if log is None else math.exp(min(log, _LARGEST_LOG))
        highest: float | None = self._options["max_threshold"]
        threshold = max(threshold, self._options["min_threshold"])
        return threshold if highest is None else min(threshold, highest)

    def is_extreme(self, norm: float) -> bool:
        """Return whether the norm is so large that its step may be skipped. During warm-up nothing is known to be."""
        if not self._warm or norm <= 0:
            return False
        median, deviation = self._usual()
        return bool(math.log(norm) - median > self._options["skip_norm_deviations"] * deviation)

    def accept(self, norm: float) -> bool:
        """Take in the norm (finite, at least 0) of a step that is taken; return whether the window began anew."""
        if norm <= 0:
            return False
        log = math.log(norm)
        if not self._warm:
            self._enter(log)
            self._warm = len(self._logs) >= self._options["warmup_steps"]
            return False
        median, reach = self._usual()[0], self._reach()
        self._raw.append(log)
        self._sides.append((log > median + reach) - (log < median - reach))
        for side in (1, -1):
            if self._sides.count(side) >= self._options["reseed_after"]:
                self._begin_anew(side)
                return True
        self._enter(min(log, median + reach))
        return False

    def _enter(self, log: float) -> None:
        self._logs.append(log)
        self._range = None

    def _begin_anew(self, side: int) -> None:
        first = self._sides.index(side)
        self._logs.clear()
        self._logs.extend(list(self._raw)[first:])
        self._raw.clear()
        self._sides.clear()
        self._range = None

    def _usual(self) -> tuple[float, float]:
        if self._range is None:
            median, deviation = center_and_deviation(self._logs)
            self._range = median, max(deviation, self._options["deviation_floor"])
        return self._range

    def _reach(self) -> float:
        return float(self._options["clip_deviations"] * self._usual()[1] * (1 + _FEW / len(self._logs)))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as lists of numbers that JSON keeps exactly."""
        return {"logs": list(self._logs), "raw": list(self._raw), "sides": list(self._sides), "warm": self._warm}

    @classmethod
    def from_state(cls, state: Any, options: Mapping[str, Any], key: str) -> ClipWindow:
        """Return the window that was saved; of a longer one its newest norms.

        Raises:
            ValueError: the state is damaged. The message names the entry.
        """
        state = saved.section(state, key, ("logs", "raw", "sides", "warm"))
        window = cls(options)
        window._logs.extend(saved.numbers(state, "logs"))
        window._raw.extend(saved.numbers(state, "raw"))
        sides = state["sides"]
        if not isinstance(sides, list | tuple) or any(side not in (-1, 0, 1) for side in sides):
            raise ValueError(f"{key}.sides is not a list of -1, 0 and 1: {sides!r}")
        if len(sides) != len(state["raw"]):
            raise ValueError(f"{key}.sides has {len(sides)} entries, and {key}.raw {len(state['raw'])}")
        window._sides.extend(int(side) for side in sides)
        window._warm = saved.flag(state, "warm")
        if window._warm and not window._logs:
            raise ValueError(f"{key}.warm is true, and {key}.logs is empty")
        return window
