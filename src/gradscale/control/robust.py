"""The robust rules: which step is skipped and why, and what the others teach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradscale.control import saved
from gradscale.control.clip_window import ClipWindow
from gradscale.control.decision import (
    BAD_LOSS,
    BAD_NORM,
    CLIPPED,
    NOTHING,
    OUTLIER,
    RESEEDED,
    WARMUP,
    Decision,
    clip_coefficient,
)
from gradscale.control.loss_scale import RobustLossScale
from gradscale.control.loss_window import LossWindow


class RobustRules:
    """Clip windows of the whole and of each group, the window of losses, and the loss scale.

    Args:
        options: the shared and the robust options, checked.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._window = ClipWindow(options)
        self._losses = LossWindow(options)
        self._groups: list[ClipWindow] | None = None
        self._scale = None if options["loss_scale"] is None else RobustLossScale(options)
        self._skips = 0  # finite steps skipped since the last one that was not extreme

    @property
    def threshold(self) -> float:
        """Clip norm of the next step, as far as it is known before the step."""
        return self._window.threshold

    @property
    def loss_scale(self) -> float | None:
        """Loss scale of the next step."""
        return None if self._scale is None else self._scale.scale

    @property
    def exhausted(self) -> bool:
        """Whether overflows go on at the floor of the loss scale, as often as the option raise_after allows."""
        return self._scale is not None and self._scale.exhausted

    def observe(
        self, norm: float | None, loss: float | None, found_inf: bool, lr: float | None, groups: list[float] | None
    ) -> Decision:
        """Decide about one step; see `ALSDGC.observe`.

        Raises:
            ValueError: the number of groups has changed.
        """
        if groups is not None and self._groups is not None and len(groups) != len(self._groups):
            raise ValueError(f"group_norms has {len(groups)} norms, expected {len(self._groups)} as before")
        if loss is not None and not math.isfinite(loss):
            return self._skip(BAD_LOSS, groups)  # bad data is no overflow: the scale stays
        if found_inf or not all(math.isfinite(one) for one in (norm or 0.0, *(groups or ()))):
            return self._skip(BAD_NORM if self._scale is None else self._scale.overflow(), groups)
        if self._scale is not None:
            self._scale.good_step()
        if norm is not None and loss is not None:
            if self._window.is_extreme(norm) and self._losses.is_extreme(loss):
                # Not again and again: what is extreme may be the new usual. An ordinary step earns new skips.
                if self._skips < self._options["max_skips"]:
                    self._skips += 1
                    return self._skip(OUTLIER, groups)
            else:
                self._skips = 0
        return self._take(norm, loss, groups)

    def _skip(self, reason: str, groups: list[float] | None) -> Decision:
        return Decision(self.threshold, self.loss_scale, True, reason, self._thresholds(groups))

    def _take(self, norm: float | None, loss: float | None, groups: list[float] | None) -> Decision:
        warm = self._window.warm
        threshold = self.threshold if norm is None else self._window.threshold_for(norm)
        thresholds = self._thresholds(groups)
        reseeded = norm is not None and self._window.accept(norm)
        if norm is not None and reseeded:
            threshold = self._window.threshold_for(norm)
            self._losses.clear()
        if groups is not None:
            if self._groups is None:
                self._groups = [ClipWindow(self._options) for _ in groups]
            pairs = list(zip(self._groups, groups, strict=True))
            anew = [window.accept(group) for window, group in pairs]
            reseeded = reseeded or any(anew)
            if any(anew):
                thresholds = self._thresholds(groups)
        if loss is not None:
            self._losses.accept(loss)
        clipped = norm is not None and clip_coefficient(threshold, norm) < 1
        if groups is not None and thresholds is not None:
            clipped = clipped or any(
                clip_coefficient(one, group) < 1 for one, group in zip(thresholds, groups, strict=True)
            )
        reason = RESEEDED if reseeded else CLIPPED if clipped else NOTHING if warm else WARMUP
        return Decision(threshold, self.loss_scale, False, reason, thresholds)

    def _thresholds(self, groups: list[float] | None) -> tuple[float, ...] | None:
        if groups is None:
            return None
        windows = self._groups or [ClipWindow(self._options)] * len(groups)
        return tuple(
            window.threshold_for(norm) if math.isfinite(norm) else window.threshold
            for window, norm in zip(windows, groups, strict=True)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as what JSON keeps exactly."""
        return {
            "window": self._window.state_dict(),
            "groups": None if self._groups is None else [window.state_dict() for window in self._groups],
            "losses": self._losses.state_dict(),
            "loss_scale": None if self._scale is None else self._scale.state_dict(),
            "skips": self._skips,
        }

    @classmethod
    def from_state(cls, state: Any, options: Mapping[str, Any]) -> RobustRules:
        """Return the rules in the state that was saved.

        Raises:
            ValueError: the state is damaged. The message names the entry.
        """
        rules = cls(options)
        state = saved.section(state, "rules", rules.state_dict())
        rules._window = ClipWindow.from_state(state["window"], options, "window")
        if state["groups"] is not None:
            if not isinstance(state["groups"], list | tuple):
                raise ValueError(f"groups is not a list of windows: {state['groups']!r}")
            rules._groups = [
                ClipWindow.from_state(one, options, f"groups[{index}]") for index, one in enumerate(state["groups"])
            ]
        rules._losses = LossWindow.from_state(state["losses"], options)
        if state["loss_scale"] is not None and rules._scale is not None:
            rules._scale = RobustLossScale.from_state(state["loss_scale"], options)
        rules._skips = saved.count(state, "skips")
        return rules
