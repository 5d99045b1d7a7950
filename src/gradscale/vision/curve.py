"""What a run's log says about its accuracy: at the end, at best, and when it reached the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Curve = Sequence[Sequence[float]]  # (step, validation accuracy in percent), by step
_ROUNDING = 1e-9  # 342 of 360 images are 95 %, also after the division


def summarize(log_history: Sequence[Mapping[str, Any]], *, target_accuracy: float) -> dict[str, Any]:
    """Return what the Trainer's log says about accuracy, in percent.

    Returns:
        `status` ("diverged" where a loss is not finite), `accuracy` of the last evaluation, `best_accuracy` and
        `best_step` (the earliest of equals), `validation_loss`, the whole `curve`, and what `target_of` says.
    """
    found = evaluations(log_history)
    curve = [(int(entry["step"]), 100 * float(entry["eval_accuracy"])) for entry in found]
    losses = [entry["loss"] for entry in log_history if "loss" in entry] + [entry["eval_loss"] for entry in found]
    best: tuple[int | None, float | None] = max(curve, key=lambda point: point[1], default=(None, None))
    return {
        "status": "finished" if all(map(math.isfinite, losses)) else "diverged",
        "accuracy": curve[-1][1] if curve else None,
        "best_accuracy": best[1],
        "best_step": best[0],
        "validation_loss": found[-1]["eval_loss"] if found else None,
        "curve": curve,
        **target_of(curve, target_accuracy),
    }


def target_of(curve: Curve, target_accuracy: float) -> dict[str, Any]:
    """Return `target_accuracy` and `steps_to_target`: the first evaluated step that reaches it, None if none does."""
    steps = next((int(step) for step, accuracy in curve if accuracy >= target_accuracy - _ROUNDING), None)
    return {"target_accuracy": target_accuracy, "steps_to_target": steps}


def evaluations(log_history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the entries of the Trainer's log that are evaluations."""
    return [entry for entry in log_history if "eval_accuracy" in entry]
