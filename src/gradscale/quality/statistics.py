"""What the cells of a study say: means over seeds with their intervals, each optimizer at its own best learning rate.

Standard library only. Losses are in nats per token; that of a diverged run is inf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

# Student's t, two-sided 95 %, by degrees of freedom; beyond the table that of the largest below.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T_BEYOND = ((20, 2.086), (30, 2.042), (60, 2.000), (120, 1.980))
NEAR_BEST = 0.05

Results = Mapping[tuple[str, float, int], Mapping[str, Any]]  # by arm, learning rate and seed


@dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its 95 % interval; NaN where one number says nothing of it."""

    mean: float
    half: float

    @property
    def clear_of_zero(self) -> bool:
        """Whether 0 is outside of it."""
        return abs(self.mean) > self.half


@dataclass(frozen=True)
class Line:
    """What is said of one optimizer.

    Attributes:
        arm: its name.
        best_lr: learning rate with the least mean loss over the seeds that choose.
        loss: final validation loss there.
        difference: to the baseline, of runs with the same seed; below 0 is better.
        difference_at_equal_time: the same where the baseline's training time ends; None where curves do not say.
        steps_to_baseline: share of the steps after which the baseline's final loss is reached; inf if never.
        near_best: learning rates whose loss is within 0.05 of its own best, and how many were tried.
        area: mean loss along the learning rates (trapezoids over their logarithm), diverged ones counted as the loss
            of a model that knows nothing.
        diverged: runs that did, of all.
        runs: how many there are.
        step_seconds: median seconds of a step.
    """

    arm: str
    best_lr: float
    loss: Interval
    difference: Interval | None
    difference_at_equal_time: Interval | None
    steps_to_baseline: float | None
    near_best: tuple[int, int]
    area: float
    diverged: int
    runs: int
    step_seconds: float


def interval(values: Sequence[float]) -> Interval:
    """Return the mean and its 95 % interval, by Student's t."""
    if not values:
        return Interval(math.nan, math.nan)
    if not all(map(math.isfinite, values)):
        return Interval(math.inf, math.nan)
    if len(values) == 1:
        return Interval(values[0], math.nan)
    return Interval(mean(values), _t(len(values) - 1) * stdev(values) / math.sqrt(len(values)))


def _t(freedom: int) -> float:
    if freedom <= len(_T):
        return _T[freedom - 1]
    # Of the largest tabulated value below: a wider interval, never a narrower one.
    return next((value for limit, value in reversed(_T_BEYOND) if limit <= freedom), _T[-1])


def final_loss(result: Mapping[str, Any]) -> float:
    """Return the validation loss at the end, inf if the run diverged."""
    loss = result["validation_loss"]
    return math.inf if loss is None else float(loss)


def best_learning_rate(results: Results, arm: str, rates: Sequence[float], seeds: Sequence[int]) -> float | None:
    """Return the rate with the least mean loss over these seeds; None while a cell is missing."""
    if not all((arm, rate, seed) in results for rate in rates for seed in seeds):
        return None
    return min(rates, key=lambda rate: (mean(final_loss(results[arm, rate, seed]) for seed in seeds), rate))


def lines(
    results: Results,
    arms: Mapping[str, Sequence[float]],
    baseline: str,
    *,
    seeds: Sequence[int],
    select_seeds: Sequence[int],
    know_nothing: float,
) -> list[Line]:
    """Return a line for each optimizer whose cells are there.

    Args:
        results: of all finished cells.
        arms: learning rates of each.
        baseline: what they are compared with.
        seeds: on which the result is measured.
        select_seeds: on which the learning rate is chosen.
        know_nothing: loss of a model that knows nothing, ln of the vocabulary.
    """
    best = {arm: best_learning_rate(results, arm, rates, select_seeds) for arm, rates in arms.items()}
    found = []
    reference = _at(results, baseline, best[baseline], seeds)
    for arm, rates in arms.items():
        lr = best[arm]
        here = _at(results, arm, lr, seeds)
        if lr is None or here is None:
            continue
        sweep = [mean(final_loss(results[arm, rate, seed]) for seed in select_seeds) for rate in rates]
        own = [result for (name, _, _), result in results.items() if name == arm]
        compared = arm != baseline and reference is not None
        found.append(
            Line(
                arm=arm,
                best_lr=lr,
                loss=interval([final_loss(result) for result in here]),
                difference=_difference(here, reference) if compared and reference else None,
                difference_at_equal_time=_at_equal_time(here, reference) if compared and reference else None,
                steps_to_baseline=_steps_to(here, reference) if compared and reference else None,
                near_best=(sum(loss <= min(sweep) + NEAR_BEST for loss in sweep), len(sweep)),
                area=_area(rates, [min(loss, know_nothing) for loss in sweep]),
                diverged=sum(result["status"] == "diverged" for result in own),
                runs=len(own),
                step_seconds=sorted(_step_seconds(result) for result in own)[len(own) // 2],
            )
        )
    return found


def _at(results: Results, arm: str, lr: float | None, seeds: Sequence[int]) -> list[Mapping[str, Any]] | None:
    if lr is None or not all((arm, lr, seed) in results for seed in seeds):
        return None
    return [results[arm, lr, seed] for seed in seeds]


def _difference(here: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> Interval:
    return interval([final_loss(one) - final_loss(other) for one, other in zip(here, reference, strict=True)])


def _at_equal_time(here: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> Interval | None:
    differences = []
    for one, other in zip(here, reference, strict=True):
        loss = _loss_at([(seconds, loss) for _, seconds, loss in one["curve"]], other["seconds"])
        if loss is None or one["status"] != "finished":
            return None
        differences.append(loss - final_loss(other))
    return interval(differences)


def _loss_at(curve: Sequence[tuple[float, float]], where: float) -> float | None:
    """Return the loss at a point of the curve, its end beyond that, by straight lines; None before its beginning."""
    if not curve or where < curve[0][0]:
        return None
    for (left, high), (right, low) in zip(curve, curve[1:], strict=False):
        if left <= where <= right:
            return high + (low - high) * (where - left) / max(right - left, 1e-12)
    return curve[-1][1]


def _steps_to(here: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of the steps after which the mean curve is at the baseline's mean final loss."""
    if not all(result["status"] == "finished" for result in (*here, *reference)):
        return math.inf
    goal = mean(final_loss(result) for result in reference)
    curves = [result["curve"] for result in here]
    points = [(points[0][0], mean(point[2] for point in points)) for points in zip(*curves, strict=True)]
    before: tuple[float, float] | None = None
    for step, loss in points:
        if loss <= goal:
            if before is None:
                return float(step / points[-1][0])
            share = (before[1] - goal) / max(before[1] - loss, 1e-12)
            return float((before[0] + share * (step - before[0])) / points[-1][0])
        before = step, loss
    return math.inf


def _area(rates: Sequence[float], losses: Sequence[float]) -> float:
    if len(rates) == 1:
        return losses[0]
    logs = [math.log(rate) for rate in rates]
    pieces = [
        (right - left) * (one + other) / 2
        for left, right, one, other in zip(logs, logs[1:], losses, losses[1:], strict=False)
    ]
    return sum(pieces) / (logs[-1] - logs[0])


def _step_seconds(result: Mapping[str, Any]) -> float:
    steps = result["curve"][-1][0] if result["curve"] else 0
    return float(result["seconds"]) / steps if steps else math.nan
