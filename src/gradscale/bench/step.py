"""`gradscale bench step`: the time of `optimizer.step()`, with and without a grouping, beside that of others."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from gradscale.bench import problem
from gradscale.bench.clock import Task, interleave, quartiles, timed
from gradscale.bench.contestants import NEVER, Contestant
from gradscale.bench.machine import available_bytes, peak_bytes
from gradscale.bench.shapes import Workload
from gradscale.bench.state import state_bytes, step_bytes


@dataclass(frozen=True)
class Method:
    """How to measure.

    Attributes:
        dtype: of parameters and gradients.
        device: where.
        rounds: turns of every contestant.
        steps: steps in a turn; a turn counts with their median.
        interval: T, steps between two groupings, for the amortized cost.
        groupings: measure steps that group, too.
    """

    dtype: torch.dtype
    device: torch.device
    rounds: int = 11
    steps: int = 3
    interval: int = 500
    groupings: bool = True


class _Runner:
    """A contestant at work. Its first steps are timed and left out of everything else."""

    def __init__(self, contestant: Contestant, params: list[torch.Tensor], method: Method) -> None:
        self.contestant = contestant
        self.optimizer: Optimizer = contestant.make(params)
        self.first_step = self._timed_step(method.device)
        self.first_grouping = (
            contestant.first_grouping(self.optimizer, functools.partial(self._timed_step, method.device))
            if method.groupings
            else None
        )
        # Once more, as every step from here on: what compiles for frozen labels does so after the first grouping.
        self.optimizer.step()

    @property
    def groups(self) -> bool:
        return self.first_grouping is not None

    def plain(self, times: int) -> Task:
        return Task(lambda: self.contestant.group_every(self.optimizer, NEVER), self.optimizer.step, times)

    def grouping(self) -> Task:
        return Task(lambda: self.contestant.group_every(self.optimizer, 1), self.optimizer.step)

    def _timed_step(self, device: torch.device) -> float:
        return timed(self.optimizer.step, device)


def measure(workload: Workload, contestants: Sequence[Contestant], baseline: int, method: Method) -> dict[str, Any]:
    """Return what was measured of one workload, raw times included.

    Args:
        workload: the tensors.
        contestants: the optimizers.
        baseline: index of the one that ratios refer to.
        method: how to measure.

    Raises:
        ConfigError: a contestant cannot run.
        ShortageError: there is not enough memory.
    """
    each = [contestant.state_bytes(method.device, method.dtype) for contestant in contestants]
    plan = problem.plan(workload, method.dtype, each, available_bytes(method.device), together=True)
    tensors = problem.Problem(workload, method.dtype, method.device, plan.shared)
    runners = [_Runner(contestant, tensors.params(), method) for contestant in contestants]

    # What memory gives: a pass that reads and writes one tensor. Not a copy, which on a CPU reads its target as well.
    probe = torch.zeros(min(workload.parameters, problem.LARGEST_PROBE), device=method.device)
    tasks = [Task(lambda: None, lambda: probe.add_(1.0), method.steps)]
    tasks += [runner.plain(method.steps) for runner in runners]
    tasks += [runner.grouping() for runner in runners if runner.groups]
    seconds = interleave(tasks, method.rounds, method.device)
    turns = [[quartiles(calls)["median"] if len(calls) > 1 else calls[0] for calls in task] for task in seconds]

    plain = turns[1 : 1 + len(runners)]
    raw_groupings = iter(seconds[1 + len(runners) :])
    rates = [2 * probe.nbytes / time for time in turns[0]]
    report: dict[str, Any] = {
        **describe(workload),
        "shared": plan.shared,
        "in_place_pass": {
            "elements": probe.numel(),
            "bytes_per_second": quartiles(rates),
            "raw_seconds": seconds[0],
        },
        "optimizers": [],
    }
    for index, runner in enumerate(runners):
        entry = _entry(runner, workload, plain[index], plain[baseline], rates)
        entry["raw_seconds"] = seconds[1 + index]
        entry["is_baseline"] = index == baseline
        if runner.groups:
            raw = next(raw_groupings)
            times = [calls[0] for calls in raw]
            entry["grouping"] = _grouping(runner, times, plain[index], plain[baseline]) | {"raw_seconds": raw}
            entry["amortized_ratio"] = quartiles(
                [
                    (step + (grouping - step) / method.interval) / base
                    for step, grouping, base in zip(plain[index], times, plain[baseline], strict=True)
                ]
            )
        report["optimizers"].append(entry)
    report["peak_memory_bytes"] = peak_bytes(method.device)
    return report


def describe(workload: Workload) -> dict[str, Any]:
    """Return what a workload is."""
    return {
        "shapes": workload.name,
        "summary": workload.summary,
        "tensors": workload.tensors,
        "parameters": workload.parameters,
        "layers": workload.layers,
    }


def state_of(optimizer: Optimizer, workload: Workload, dtype: torch.dtype) -> dict[str, Any]:
    """Return the state of an optimizer, in bytes and in bytes per parameter; AdamW's is two moments in `dtype`."""
    by_key = state_bytes(optimizer)
    per_parameter = sum(by_key.values()) / workload.parameters
    return {
        "state_bytes": by_key,
        "state_bytes_per_parameter": per_parameter,
        "beyond_adamw": per_parameter - 2 * dtype.itemsize,
    }


def _entry(
    runner: _Runner, workload: Workload, times: list[float], base: list[float], probe_rates: list[float]
) -> dict[str, Any]:
    moved = step_bytes(runner.optimizer)
    rates = [moved / time for time in times]
    dtype = runner.optimizer.param_groups[0]["params"][0].dtype
    return {
        "optimizer": runner.contestant.label,
        "class": f"{type(runner.optimizer).__module__}.{type(runner.optimizer).__qualname__}",
        "first_step_seconds": runner.first_step,
        "first_grouping_seconds": runner.first_grouping,
        "step_seconds": quartiles(times),
        "nanoseconds_per_parameter": quartiles([1e9 * time / workload.parameters for time in times]),
        "ratio": quartiles([time / other for time, other in zip(times, base, strict=True)]),
        "amortized_ratio": None,
        "grouping": None,
        **state_of(runner.optimizer, workload, dtype),
        "moved_bytes": moved,
        "bytes_per_second": quartiles(rates),
        "share_of_in_place_pass": quartiles([rate / most for rate, most in zip(rates, probe_rates, strict=True)]),
    }


def _grouping(runner: _Runner, times: list[float], plain: list[float], base: list[float]) -> dict[str, Any]:
    costs = [time - step for time, step in zip(times, plain, strict=True)]
    return {
        "seconds": quartiles(costs),
        "baseline_steps": quartiles([cost / step for cost, step in zip(costs, base, strict=True)]),
        "step_seconds": quartiles(times),
    }
