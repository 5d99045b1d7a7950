"""What a study would still train, and about how long that takes: for `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gradscale.quality.cell import Cell
from gradscale.quality.optimizers import class_and_options
from gradscale.quality.pool import Store
from gradscale.quality.run import multipliers_of
from gradscale.quality.statistics import best_learning_rate
from gradscale.quality.study import Arm, Study


@dataclass(frozen=True)
class Row:
    """What is planned of one optimizer.

    Attributes:
        arm: its name.
        finished: cells that are there.
        missing: cells that are not.
        seconds: that the missing ones take; None where nothing finished says so.
    """

    arm: str
    finished: int
    missing: int
    seconds: float | None


def plan(study: Study, output_dir: Path) -> list[Row]:
    """Return what is planned of each optimizer. Nothing is trained or written, and no data are read.

    Times are those of the optimizer's own finished cells, else of all finished ones, per sequence trained on.

    Raises:
        ConfigError: an optimizer does not exist, an option is wrong, or the folder holds something else.
    """
    for arm in study.arms.values():
        class_and_options(arm)
    store = Store(output_dir, study, make=False)
    results: dict[tuple[str, float, int], dict[str, Any]] = {}
    counts = {}
    for arm in sorted(study.arms.values(), key=lambda arm: arm.multipliers_from is not None):
        counts[arm.name] = _look(store, study, arm, results)
    speeds = {name: _seconds_per_sequence(study, results, name) for name in study.arms}
    known = [speed for speed in speeds.values() if speed is not None]
    rows = []
    for arm in study.arms.values():
        finished, missing = counts[arm.name]
        own = speeds[arm.name]
        speed = own if own is not None else median(known) if known else None
        rows.append(Row(arm.name, finished, missing, None if speed is None else missing * speed * _sequences(arm)))
    return rows


def _look(
    store: Store, study: Study, arm: Arm, results: dict[tuple[str, float, int], dict[str, Any]]
) -> tuple[int, int]:
    """Enter an arm's finished cells into `results`, and return how many there are and how many are missing."""
    multipliers: tuple[tuple[str, float], ...] = ()
    if arm.multipliers_from is not None:
        if not _is_complete(study, study.arms[arm.multipliers_from], results):
            # What its cells are asked for is not known before those have been trained.
            return 0, len(arm.learning_rates) * len(study.select_seeds) + _measured_apart(study)
        multipliers = multipliers_of(study, arm, results)
    for lr in arm.learning_rates:
        for seed in study.select_seeds:
            found = store.get(Cell(arm.name, lr, seed, multipliers))
            if found is not None:
                results[arm.name, lr, seed] = found
    chosen = len([key for key in results if key[0] == arm.name])
    missing = len(arm.learning_rates) * len(study.select_seeds) - chosen
    lr_of_best = best_learning_rate(results, arm.name, arm.learning_rates, study.select_seeds)
    if lr_of_best is None:
        return chosen, missing + _measured_apart(study)
    for seed in study.seeds:
        found = store.get(Cell(arm.name, lr_of_best, seed, multipliers))
        if found is not None:
            results[arm.name, lr_of_best, seed] = found
        else:
            missing += 1
    return len([key for key in results if key[0] == arm.name]), missing


def _is_complete(study: Study, arm: Arm, results: Mapping[tuple[str, float, int], Any]) -> bool:
    lr = best_learning_rate(results, arm.name, arm.learning_rates, study.select_seeds)
    return lr is not None and all((arm.name, lr, seed) in results for seed in study.seeds)


def _measured_apart(study: Study) -> int:
    return len(set(study.seeds) - set(study.select_seeds))


def _seconds_per_sequence(study: Study, results: Mapping[tuple[str, float, int], Any], name: str) -> float | None:
    own = [result for (arm, _, _), result in results.items() if arm == name and result["status"] == "finished"]
    return median(result["seconds"] for result in own) / _sequences(study.arms[name]) if own else None


def _sequences(arm: Arm) -> int:
    return arm.schedule.steps * arm.schedule.batch_size


def text(study: Study, rows: list[Row], jobs: int) -> str:
    """Return a table of the plan, with the time that all of it takes."""
    table = ["| optimizer | learning rates | finished | missing | hours |", "|---|---|--:|--:|--:|"]
    for row in rows:
        rates = " ".join(f"{rate:g}" for rate in study.arms[row.arm].learning_rates)
        hours = "?" if row.seconds is None else f"{row.seconds / 3600:.2f}"
        table.append(f"| `{row.arm}` | {rates} | {row.finished} | {row.missing} | {hours} |")
    finished, missing = sum(row.finished for row in rows), sum(row.missing for row in rows)
    known = [row.seconds for row in rows if row.seconds is not None]
    time = (
        "no cell has finished that would tell how long one takes"
        if len(known) < len(rows)
        else f"about {sum(known) / 3600 / jobs:.1f} hours with --jobs {jobs} (training alone)"
    )
    return "\n".join(table) + f"\n\n{finished} cells finished, {missing} missing: {time}"
