"""Interleaved timing: what is compared runs in one process, turn by turn, so that all see the same machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Task:
    """Something to time.

    Attributes:
        prepare: called before each turn, not timed.
        run: timed.
        times: calls of `run` in a turn.
    """

    prepare: Callable[[], object]
    run: Callable[[], object]
    times: int = 1


def interleave(tasks: Sequence[Task], rounds: int, device: torch.device) -> list[list[list[float]]]:
    """Return seconds `[task][round][call]`. Every round has a turn of each task, in an order that rotates."""
    seconds: list[list[list[float]]] = [[] for _ in tasks]
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(tasks)
            for index in [*range(first, len(tasks)), *range(first)]:
                task = tasks[index]
                task.prepare()
                seconds[index].append([timed(task.run, device) for _ in range(task.times)])
    finally:
        if enabled:
            gc.enable()
    return seconds


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, to the end of what it started on the device."""
    _wait(device)
    begin = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles around it; there are at least two values."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": first, "q3": third}
