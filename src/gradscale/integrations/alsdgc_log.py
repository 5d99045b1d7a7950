"""What the callback of ALSDGC shows: scalars for the trackers, honest losses, a summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradscale.integrations.alsdgc_engine import Observation


def scalars(observation: Observation, summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars to log of the last step, and the counts so far.

    Keys: `alsdgc/norm` (before clipping), `alsdgc/threshold`, `alsdgc/clipped_norm` (what the optimizer got; 0 of a
    skipped step), `alsdgc/loss_scale` (of the next step), `alsdgc/clipped` (steps), `alsdgc/skipped` (steps) and
    `alsdgc/skipped_<reason>`. What is not known is left out.
    """
    logged: dict[str, float | None] = {
        "alsdgc/norm": observation.norm,
        "alsdgc/threshold": observation.threshold,
        "alsdgc/clipped_norm": observation.clipped_norm,
        "alsdgc/loss_scale": observation.decision.loss_scale,
        "alsdgc/clipped": summary["clipped"],
        "alsdgc/skipped": sum(summary["skipped"].values()),
    }
    for reason, count in summary["skipped"].items():
        logged[f"alsdgc/skipped_{reason.replace(' ', '_').replace('-', '_')}"] = count
    return {name: value for name, value in logged.items() if value is not None}


def in_words(mode: str, summary: Mapping[str, Any], last: Observation | None) -> str:
    """Return the summary of a run, a few lines."""
    steps = summary["steps"]
    skipped = summary["skipped"]
    lines = [
        f"ALSDGC ({mode}): {steps} steps, {summary['clipped']} clipped"
        + (f" ({100 * summary['clipped'] / steps:.1f} %)" if steps else "")
        + f", {sum(skipped.values())} skipped"
        + (f" ({', '.join(f'{count} {reason}' for reason, count in skipped.items())})" if skipped else "")
    ]
    if summary["reseeds"]:
        lines.append(f"  statistics begun anew: {summary['reseeds']} times")
    if last is not None:
        lines.append(f"  threshold at the end: {last.decision.threshold:.4g}")
        if last.decision.loss_scale is not None:
            lines.append(
                f"  loss scale at the end: {last.decision.loss_scale:g} (lowest {summary['lowest_scale']:g}, highest "
                f"{summary['highest_scale']:g})"
            )
    return "\n".join(lines)


class LossWindow:
    """Losses of the steps since the last log, and of the run: the Trainer's filter may have put 0 in the place of NaN.

    With `logging_nan_inf_filter` it replaces a loss that is not finite by the mean of those before it since the last
    log; where there are none, by 0.
    """

    def __init__(self) -> None:
        self._window, self._run = _Mean(), _Mean()

    def add(self, loss: float | None) -> None:
        """Take in the loss of a step."""
        if loss is not None:
            self._window.add(loss)
            self._run.add(loss)

    def honest(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Return what the loss in a training log, and that of the whole run, ought to be where they may be wrong.

        The mean of the finite losses, or NaN if there was none. Ends the window.
        """
        found = {}
        if "loss" in logs:
            if self._window.bad:
                found["loss"] = self._window.value
            self._window = _Mean()
        if "train_loss" in logs and self._run.bad:
            found["train_loss"] = self._run.value
        return found


class _Mean:
    def __init__(self) -> None:
        self._sum, self._count, self.bad = 0.0, 0, 0

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self._sum, self._count = self._sum + value, self._count + 1
        else:
            self.bad += 1

    @property
    def value(self) -> float:
        return self._sum / self._count if self._count else math.nan
