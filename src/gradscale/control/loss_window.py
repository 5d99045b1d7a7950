"""What is usual for the loss: the second witness before a step with finite gradients is skipped."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from gradscale.control import saved
from gradscale.control.spread import center_and_deviation


class LossWindow:
    """Losses of the last accepted steps: median, and the larger of 1.4826 MAD and a share of the median.

    Losses may be negative, so unlike norms they are taken as they are. What lies beyond `clip_deviations` enters at
    that bound.

    Args:
        options: the robust options, checked.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._losses: deque[float] = deque(maxlen=options["window"])

    def is_extreme(self, loss: float) -> bool:
        """Return whether the loss (finite) is far above what is usual. Of a few losses nobody knows that."""
        if len(self._losses) < self._options["warmup_steps"]:
            return False
        median, deviation = self._usual()
        return bool(loss - median > self._options["skip_loss_deviations"] * deviation)

    def accept(self, loss: float) -> None:
        """Take in the loss (finite) of a step that is taken."""
        if len(self._losses) >= self._options["warmup_steps"]:
            median, deviation = self._usual()
            loss = min(loss, median + self._options["clip_deviations"] * deviation)
        self._losses.append(loss)

    def clear(self) -> None:
        """Forget everything."""
        self._losses.clear()

    def _usual(self) -> tuple[float, float]:
        median, deviation = center_and_deviation(self._losses)
        return median, max(deviation, self._options["deviation_floor"] * abs(median), sys.float_info.min)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a list of numbers that JSON keeps exactly."""
        return {"losses": list(self._losses)}

    @classmethod
    def from_state(cls, state: Any, options: Mapping[str, Any]) -> LossWindow:
        """Return the window that was saved; of a longer one its newest losses.

        Raises:
            ValueError: the state is damaged. The message names the entry.
        """
        window = cls(options)
        window._losses.extend(saved.numbers(saved.section(state, "losses", ("losses",)), "losses"))
        return window
