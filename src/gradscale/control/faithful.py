"""ALSDGC's rules as the paper lists them (section 3, step 7): a reference, not for training.

The rules are kept as they are, with what is wrong with them: the scale doubles after every good step, and the
threshold follows norm / lr, so that nothing is clipped at usual learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradscale.control import saved
from gradscale.control.decision import BAD_NORM, CLIPPED, NOTHING, OVERFLOW, Decision, clip_coefficient


def update_loss_scale(
    loss_scale: float,
    *,
    overflow: bool = False,
    growth_factor: float = 2.0,
    shrink_factor: float = 0.5,
    lowest: float = 1.0,
    highest: float = 2.0**16,
) -> float:
    """Return the next loss scale: max(s/2, 1) after an overflow, else min(2s, 2^16).

    The listing takes the norm, the loss and a growth interval too, and uses none of them.
    """
    if overflow:
        return max(loss_scale * shrink_factor, lowest)
    return min(loss_scale * growth_factor, highest)


def update_clipping_threshold(threshold: float, norm: float, lr: float, adjustment_factor: float = 1.1) -> float:
    """Return the next threshold: 1.1 theta if norm > theta * lr, else theta / 1.1."""
    if norm > threshold * lr:
        return threshold * adjustment_factor
    return threshold / adjustment_factor


class FaithfulRules:
    """The listed rules in the listed order: clip with theta, then update s and theta.

    What the listing leaves open: gradients are unscaled before their norm is taken, and a step whose gradients are not
    finite is skipped and does not change theta.

    Args:
        options: the shared and the faithful options, checked.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._theta: float = options["initial_threshold"]
        self._groups: list[float] | None = None
        self.loss_scale: float | None = options["loss_scale"]
        self.exhausted = False  # these rules never give up

    @property
    def threshold(self) -> float:
        """Clip norm of the next step."""
        return self._theta

    def observe(
        self, norm: float | None, loss: float | None, found_inf: bool, lr: float | None, groups: list[float] | None
    ) -> Decision:
        """Decide about one step; see `ALSDGC.observe`.

        Raises:
            ValueError: there is no learning rate, or the number of groups has changed.
        """
        if lr is None:
            raise ValueError("mode='faithful' compares the norm with theta * lr: give lr")
        if groups is not None and self._groups is not None and len(groups) != len(self._groups):
            raise ValueError(f"group_norms has {len(groups)} norms, expected {len(self._groups)} as before")
        thetas = self._groups or [self._options["initial_threshold"]] * len(groups or ())
        overflow = found_inf or not all(math.isfinite(one) for one in (norm or 0.0, *(groups or ())))
        theta = self._theta
        if self.loss_scale is not None:
            self.loss_scale = update_loss_scale(
                self.loss_scale,
                overflow=overflow,
                growth_factor=self._options["growth_factor"],
                shrink_factor=self._options["backoff_factor"],
                lowest=self._options["min_loss_scale"],
                highest=self._options["max_loss_scale"],
            )
        shown = None if groups is None else tuple(thetas)
        if overflow:
            reason = BAD_NORM if self.loss_scale is None else OVERFLOW
            return Decision(theta, self.loss_scale, True, reason, shown)
        factor = self._options["adjustment_factor"]
        clipped = False
        if norm is not None:
            clipped = clip_coefficient(theta, norm) < 1
            self._theta = update_clipping_threshold(theta, norm, lr, factor)
        if groups is not None:
            pairs = list(zip(thetas, groups, strict=True))
            clipped = clipped or any(clip_coefficient(one, group) < 1 for one, group in pairs)
            self._groups = [update_clipping_threshold(one, group, lr, factor) for one, group in pairs]
        return Decision(theta, self.loss_scale, False, CLIPPED if clipped else NOTHING, shown)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as what JSON keeps exactly; the threshold may have grown to infinity: "inf"."""
        groups = None if self._groups is None else [_shown(one) for one in self._groups]
        scale = None if self.loss_scale is None else {"scale": self.loss_scale}
        return {"threshold": _shown(self._theta), "groups": groups, "loss_scale": scale}

    @classmethod
    def from_state(cls, state: Any, options: Mapping[str, Any]) -> FaithfulRules:
        """Return the rules in the state that was saved.

        Raises:
            ValueError: the state is damaged. The message names the entry.
        """
        rules = cls(options)
        state = saved.section(state, "rules", rules.state_dict())
        rules._theta = _read(state["threshold"], "threshold")
        if state["groups"] is not None:
            if not isinstance(state["groups"], list | tuple):
                raise ValueError(f"groups is not a list of thresholds: {state['groups']!r}")
            rules._groups = [_read(one, f"groups[{index}]") for index, one in enumerate(state["groups"])]
        if state["loss_scale"] is not None and rules.loss_scale is not None:
            rules.loss_scale = saved.bounded_scale(
                saved.section(state["loss_scale"], "loss_scale", ("scale",)), options
            )
        return rules


def _shown(threshold: float) -> float | str:
    return "inf" if math.isinf(threshold) else threshold


def _read(value: Any, key: str) -> float:
    threshold = math.inf if value == "inf" else saved.number(value, key)
    if threshold < 0:
        raise ValueError(f"{key}={value!r} is below 0")
    return threshold
