"""Scripted traces of norms and losses, one trouble each, and what a clipping rule makes of them."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradscale.bench.peers.clipping import ClipRule

_START = 500  # step of the one event, and where spikes and bad batches begin
_SETTLED = 150  # steps left out before clipping is counted: warm-up is a matter of its own


@dataclass(frozen=True)
class Trace:
    """Norm and loss of each step, the norm that is usual there, and which steps are bad."""

    norms: list[float]
    losses: list[float]
    usual: list[float]
    bad: list[bool]


def trace(kind: str, seed: int, steps: int, noise: float) -> Trace:
    """Return a trace: ln(norm) is normal with standard deviation `noise` around a level that decays slowly."""
    rng = random.Random(f"{kind} {seed}")
    norms, losses, usual, bad = [], [], [], []
    for step in range(steps):
        level = -step / 5000
        if kind == "drift":
            level = 3.0 * step / 2000  # e^3 in 2000 steps
        if kind == "shift" and step >= _START:
            level += math.log(4)
        norm, loss = math.exp(rng.gauss(level, noise)), rng.gauss(2.0, 0.05)
        hit = {
            "spikes": step >= _START and rng.random() < 0.01,
            "bad batches": step >= _START and rng.random() < 0.03,
            "one NaN": step == _START,
            "one inf": step == _START,
        }.get(kind, False)
        if hit:
            loss = {"spikes": loss, "bad batches": 5.5, "one NaN": math.nan, "one inf": math.inf}[kind]
            norm = {"one NaN": math.nan, "one inf": math.inf}.get(kind, 50 * norm)
        norms.append(norm)
        losses.append(loss)
        usual.append(math.exp(level))
        bad.append(hit)
    return Trace(norms, losses, usual, bad)


KINDS = ("clean", "spikes", "bad batches", "shift", "drift", "one NaN", "one inf")


def play(make: Callable[[], ClipRule], kind: str, seed: int, steps: int, noise: float) -> dict[str, Any]:
    """Return what a rule does along a trace: shares of steps, and the largest applied norm over the usual one."""
    made = trace(kind, seed, steps, noise)
    rule = make()
    answers = [rule(norm, loss) for norm, loss in zip(made.norms, made.losses, strict=True)]
    later = range(min(_SETTLED, steps // 2), steps)
    clean = [step for step in later if not made.bad[step]]
    # A coefficient of 0.999 is torch's 1e-6 and rounding, not clipping.
    clipped = [step for step in clean if not answers[step].skip and answers[step].coefficient < 0.999]
    applied = [
        (made.norms[step] * answers[step].coefficient) / made.usual[step]
        for step in later
        if made.bad[step] and not answers[step].skip
    ]
    skipped = sum(answers[step].skip for step in clean)
    poisoned = sum(not answers[step].skip and math.isnan(answers[step].coefficient) for step in range(steps))
    return {
        "clipped": len(clipped) / len(clean),
        "largest": max(applied, default=0.0) if all(map(math.isfinite, applied)) else math.inf,
        "recovery": _recovery(answers) if kind == "shift" else None,
        "good_steps_skipped": skipped,
        "not_finite": poisoned,
    }


def _recovery(answers: list[Any]) -> int | None:
    """Return after how many steps less than a tenth of the next 50 is touched; None: never."""
    touched = [answer.skip or answer.coefficient < 0.999 for answer in answers[_START:]]
    for step in range(len(touched) - 50):
        if not touched[step] and sum(touched[step : step + 50]) <= 5:
            return step
    return None


def summarize(make: Callable[[], ClipRule], seeds: int, steps: int, noise: float) -> dict[str, Any]:
    """Return the numbers of the table for one rule: the median over seeds, of `largest` and `recovery` the worst."""
    played = {kind: [play(make, kind, seed, steps, noise) for seed in range(seeds)] for kind in KINDS}

    def median(kind: str, what: str) -> float:
        return float(statistics.median(one[what] for one in played[kind]))

    recoveries = [one["recovery"] for one in played["shift"]]
    return {
        "clean_clipped": median("clean", "clipped"),
        "drift_clipped": median("drift", "clipped"),
        "spike_over_median": max(one["largest"] for one in played["spikes"]),
        "bad_over_median": max(one["largest"] for one in played["bad batches"]),
        "recovery_steps": None if None in recoveries else max(recoveries),
        "nan_steps_applied": max(one["not_finite"] for kind in ("one NaN", "one inf") for one in played[kind]),
        "good_steps_skipped_after_nan": max(
            one["good_steps_skipped"] for kind in ("one NaN", "one inf") for one in played[kind]
        ),
        "clipped_after_nan": median("one NaN", "clipped"),
    }
