"""Loss-scale rules of others, written from their formulas, with their default options."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from gradscale.control import ALSDGC


class ScaleRule(Protocol):
    """A loss scale that changes after each step."""

    scale: float

    def update(self, found_inf: bool, loss: float) -> bool:
        """Take in one step; return whether the rule would have ended the run (it goes on regardless)."""


class TorchRule:
    """`torch.amp.GradScaler`: half after an overflow, double after 2000 steps without; no floor."""

    def __init__(self, scale: float = 2.0**16, interval: int = 2000) -> None:
        self.scale, self._interval, self._good = scale, interval, 0

    def update(self, found_inf: bool, loss: float) -> bool:  # noqa: D102
        self._good = 0 if found_inf else self._good + 1
        if found_inf:
            self.scale *= 0.5
        elif self._good == self._interval:
            self.scale, self._good = 2 * self.scale, 0
        return False


class DeepSpeedRule:
    """DeepSpeed's dynamic scaler: from 2^16, window 1000, hysteresis 2, floor 1, at which the run is ended."""

    def __init__(self, scale: float = 2.0**16, window: int = 1000, hysteresis: int = 2, floor: float = 1.0) -> None:
        self.scale = scale
        self._window, self._full, self._floor = window, hysteresis, floor
        self._left, self._step, self._last = hysteresis, 0, -1

    def update(self, found_inf: bool, loss: float) -> bool:  # noqa: D102
        ended = False
        if found_inf:
            if self._left == 1:
                ended = self.scale == self._floor
                self.scale = max(self.scale / 2, self._floor)
            else:
                self._left -= 1
            self._last = self._step
        else:
            stable = self._step - self._last - 1
            if stable > 0 and stable % self._window == 0:
                self._left = self._full
                self.scale *= 2
        self._step += 1
        return ended


class MegatronRule:
    """Megatron's DynamicGradScaler: window 1000, hysteresis 2, floor 1; hysteresis refilled by growth only."""

    def __init__(self, scale: float = 2.0**16, window: int = 1000, hysteresis: int = 2, floor: float = 1.0) -> None:
        self.scale = scale
        self._window, self._full, self._floor = window, hysteresis, floor
        self._left, self._good = hysteresis, 0

    def update(self, found_inf: bool, loss: float) -> bool:  # noqa: D102
        if found_inf:
            self._good = 0
            self._left -= 1
            if self._left <= 0:
                self.scale = max(self.scale * 0.5, self._floor)
        else:
            self._good += 1
            if self._good == self._window:
                self._good, self._left = 0, self._full
                self.scale *= 2
        return False


class OurRule:
    """The controller of this package; `sees_loss=False` hides the loss from it."""

    def __init__(self, mode: str = "robust", *, sees_loss: bool = True) -> None:
        self._controller = ALSDGC(mode, loss_scale=2.0**16)
        self._sees_loss = sees_loss
        self.scale = 2.0**16

    def update(self, found_inf: bool, loss: float) -> bool:  # noqa: D102
        decision = self._controller.observe(
            norm=math.inf if found_inf else 1.0, loss=loss if self._sees_loss else None, found_inf=found_inf, lr=1e-3
        )
        self.scale = decision.loss_scale or math.nan
        return False


SCALE_RULES: dict[str, Callable[[], ScaleRule]] = {
    "torch.amp.GradScaler": TorchRule,
    "DeepSpeed dynamic": DeepSpeedRule,
    "Megatron": MegatronRule,
    "ALSDGC faithful": lambda: OurRule("faithful"),
    "ALSDGC robust, without the loss": lambda: OurRule(sees_loss=False),
    "ALSDGC robust": OurRule,
}
FLOORS = {"DeepSpeed dynamic": 1.0, "Megatron": 1.0, "ALSDGC faithful": 1.0}
FLOORS |= {"ALSDGC robust": 1.0, "ALSDGC robust, without the loss": 1.0}
