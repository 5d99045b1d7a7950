"""Several studies side by side: on which task an optimizer fares worst."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradscale.training.errors import ConfigError
from gradscale.training.files import read_json

HARMLESS = 0.005  # nats above the baseline that a default may cost on any task
REPORT = "quality.json"


def compare(folders: Mapping[str, Path]) -> str:
    """Return a table of the differences to each study's baseline, by optimizer and task, with the worst of each.

    Args:
        folders: of studies with a report, by name of the task.

    Raises:
        ConfigError: a folder has no report, or baselines differ.
    """
    reports = {task: _report(folder) for task, folder in folders.items()}
    baselines = {report["baseline"] for report in reports.values()}
    if len(baselines) > 1:
        raise ConfigError(f"the studies compare with different baselines: {', '.join(sorted(baselines))}")
    (baseline,) = baselines
    arms = dict.fromkeys(line["arm"] for report in reports.values() for line in report["optimizers"])
    found = {arm: {task: _difference(report, arm) for task, report in reports.items()} for arm in arms}
    found.pop(baseline, None)
    rows = sorted(found.items(), key=lambda item: (_missing(item[1]), _worst(item[1])[1][0]))
    head = ["optimizer", "worst case", "on", "never worse", *reports]
    table = [f"| {' | '.join(head)} |", "|---|--:|---|---|" + "--:|" * len(reports)]
    for arm, by_task in rows:
        task, worst = _worst(by_task)
        cells = ["" if value is None else _shown(value) for value in by_task.values()]
        table.append(f"| `{arm}` | {_shown(worst)} | {task} | {_never_worse(by_task)} | {' | '.join(cells)} |")
    intro = (
        f"Validation loss minus that of `{baseline}` (nats per token, 95 % interval), each at its own best learning "
        "rate. The worst case is the task with the highest mean; *never worse*: on all tasks the interval ends at most "
        f"{HARMLESS} above 0 (?: one seed, no interval; empty: not tried on all tasks)."
    )
    return f"{intro}\n\n" + "\n".join(table) + "\n"


def _report(folder: Path) -> dict[str, Any]:
    report = read_json(folder / REPORT)
    if not isinstance(report, dict) or "optimizers" not in report:
        raise ConfigError(f"{folder} has no {REPORT} of a study: run it first")
    if not any(line["arm"] == report["baseline"] for line in report["optimizers"]):
        raise ConfigError(f"{folder}: not all cells of the baseline {report['baseline']!r} have finished")
    return report


def _difference(report: Mapping[str, Any], arm: str) -> tuple[float, float] | None:
    """Mean and half interval; None where the optimizer was not tried or has not finished."""
    for line in report["optimizers"]:
        if line["arm"] == arm and line["difference"] is not None:
            mean, half = line["difference"]["mean"], line["difference"]["half"]
            # JSON has no inf and no NaN: a mean of null is that of a run that diverged.
            return math.inf if mean is None else mean, math.nan if half is None else half
    return None


def _missing(by_task: Mapping[str, tuple[float, float] | None]) -> bool:
    return any(value is None for value in by_task.values())


def _never_worse(by_task: Mapping[str, tuple[float, float] | None]) -> str:
    """By what the intervals allow, not by what the means are."""
    if _missing(by_task):
        return ""
    ends = [mean + half for mean, half in filter(None, by_task.values())]
    if any(mean > HARMLESS for mean, _ in filter(None, by_task.values())):
        return "no"
    return "?" if any(map(math.isnan, ends)) else "yes" if max(ends) <= HARMLESS else "no"


def _worst(by_task: Mapping[str, tuple[float, float] | None]) -> tuple[str, tuple[float, float]]:
    known = {task: value for task, value in by_task.items() if value is not None}
    task = max(known, key=lambda name: known[name][0])
    return task, known[task]


def _shown(value: tuple[float, float]) -> str:
    mean, half = value
    if math.isinf(mean):
        return "diverged"
    return f"{mean:+.4f}" if math.isnan(half) else f"{mean:+.4f} ± {half:.4f}"
