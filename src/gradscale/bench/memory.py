"""`gradscale bench memory`: what an optimizer keeps, and what a step and a grouping hold for a moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gradscale.bench import problem
from gradscale.bench.allocations import peak_extra_bytes
from gradscale.bench.contestants import NEVER, Contestant
from gradscale.bench.machine import available_bytes
from gradscale.bench.shapes import Workload
from gradscale.bench.step import describe, state_of


def measure(
    workload: Workload, contestants: Sequence[Contestant], *, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Return what was measured of one workload, one contestant after the other.

    Raises:
        ConfigError: a contestant cannot run.
        ShortageError: there is not enough memory.
    """
    each = [contestant.state_bytes(device, dtype) for contestant in contestants]
    problem.plan(workload, dtype, each, available_bytes(device), together=False)
    found = [_measure_one(workload, contestant, dtype, device) for contestant in contestants]
    return {**describe(workload), "optimizers": found}


def _measure_one(
    workload: Workload, contestant: Contestant, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    params = problem.Problem(workload, dtype, device, problem.NOTHING).params()
    optimizer = contestant.make(params)

    def extra_of_step() -> int:
        return peak_extra_bytes(optimizer.step, device)

    # The first step of each kind makes state, and may compile.
    optimizer.step()
    grouping = None
    if contestant.first_grouping(optimizer, extra_of_step) is not None:
        contestant.group_every(optimizer, 1)
        grouping = extra_of_step()
        contestant.group_every(optimizer, NEVER)
    optimizer.step()
    return {
        "optimizer": contestant.label,
        **state_of(optimizer, workload, dtype),
        "step_extra_bytes": extra_of_step(),
        "grouping_extra_bytes": grouping,
    }
