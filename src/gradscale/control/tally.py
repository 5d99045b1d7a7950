"""What has happened so far, in numbers: for logs and the summary at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradscale.control import saved
from gradscale.control.decision import (
    BAD_LOSS,
    BAD_NORM,
    FORGIVEN,
    OUTLIER,
    OVERFLOW,
    RESEEDED,
    Decision,
)

_SKIPS = (OVERFLOW, FORGIVEN, BAD_LOSS, BAD_NORM, OUTLIER)


@dataclass
class Tally:
    """Counters of steps, and the range of the loss scale."""

    steps: int = 0
    clipped: int = 0
    reseeds: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    lowest_scale: float | None = None
    highest_scale: float | None = None

    def count(self, decision: Decision, *, clipped: bool) -> None:
        """Count one step."""
        self.steps += 1
        self.clipped += clipped
        self.reseeds += decision.reason == RESEEDED
        if decision.skip:
            self.skipped[decision.reason] = self.skipped.get(decision.reason, 0) + 1
        self.scale(decision.loss_scale)

    def scale(self, scale: float | None) -> None:
        """Widen the range of the loss scale."""
        if scale is not None:
            self.lowest_scale = scale if self.lowest_scale is None else min(self.lowest_scale, scale)
            self.highest_scale = scale if self.highest_scale is None else max(self.highest_scale, scale)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {**vars(self), "skipped": dict(self.skipped)}

    @classmethod
    def from_state(cls, state: Any) -> Tally:
        """Return the tally that was saved.

        Raises:
            ValueError: the state is damaged. The message names the entry.
        """
        state = saved.section(state, "counters", cls().as_dict())
        steps = saved.count(state, "steps")
        skipped = state["skipped"]
        if not isinstance(skipped, Mapping):
            raise ValueError(f"skipped is not a mapping of reasons to counts: {skipped!r}")
        for reason in skipped:
            if reason not in _SKIPS:
                raise ValueError(f"skipped: {reason!r} is no reason to skip; these are: {', '.join(_SKIPS)}")
        scales = {
            name: None if state[name] is None else saved.number(state[name], name, positive=True)
            for name in ("lowest_scale", "highest_scale")
        }
        return cls(
            steps=steps,
            clipped=saved.count(state, "clipped", most=steps),
            reseeds=saved.count(state, "reseeds", most=steps),
            skipped={reason: saved.count(skipped, reason, most=steps) for reason in skipped},
            **scales,
        )
