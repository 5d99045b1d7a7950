"""A study from the first cell to the tables: choose learning rates, measure there, and say what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from gradscale.quality.cell import Cell, load_data, mean_scales
from gradscale.quality.optimizers import class_and_options
from gradscale.quality.pool import Store, Workers
from gradscale.quality.report import write_report
from gradscale.quality.statistics import Results, best_learning_rate
from gradscale.quality.study import Arm, Study


def run_study(
    study: Study, output_dir: Path, *, jobs: int, threads: int, device: str, said: Callable[[str], None] = print
) -> tuple[str, int]:
    """Run what is missing of a study, and write its report.

    Args:
        study: the study.
        output_dir: where cells are kept and the report is written.
        jobs: cells at a time.
        threads: of each.
        device: for all.
        said: takes progress.

    Returns:
        The report's text, and how many cells failed.

    Raises:
        ConfigError, DataError: an optimizer or the data cannot be used. No cell has run then.
    """
    for arm in study.arms.values():
        class_and_options(arm)
    store = Store(output_dir, study)
    vocabulary = load_data(study)
    plain = [arm for arm in study.arms.values() if arm.multipliers_from is None]
    fixed = [arm for arm in study.arms.values() if arm.multipliers_from is not None]
    with Workers(study, store, jobs=jobs, threads=threads, device=device, said=said) as workers:
        measuring = _Measuring(study, store, workers)
        measuring.measure(plain, {})
        multipliers = {arm.name: multipliers_of(study, arm, measuring.results) for arm in fixed}
        measuring.measure([arm for arm in fixed if multipliers[arm.name]], multipliers)
    return write_report(study, measuring.results, output_dir, vocabulary), measuring.failed


class _Measuring:
    """The results so far, and how many cells failed."""

    def __init__(self, study: Study, store: Store, workers: Workers) -> None:
        self._study, self._store, self._workers = study, store, workers
        self.results: dict[tuple[str, float, int], dict[str, Any]] = {}
        self.failed = 0

    def measure(self, arms: list[Arm], multipliers: Mapping[str, tuple[tuple[str, float], ...]]) -> None:
        """Choose each arm's learning rate, and measure there."""
        study = self._study

        def cell(arm: Arm, lr: float, seed: int) -> Cell:
            return Cell(arm.name, lr, seed, multipliers.get(arm.name, ()))

        # Seed by seed, so that a study that is stopped has something on every optimizer.
        self._run([cell(arm, lr, seed) for seed in study.select_seeds for arm in arms for lr in arm.learning_rates])
        best = [
            (arm, best_learning_rate(self.results, arm.name, arm.learning_rates, study.select_seeds)) for arm in arms
        ]
        self._run([cell(arm, lr, seed) for seed in study.seeds for arm, lr in best if lr is not None])

    def _run(self, cells: list[Cell]) -> None:
        self.failed += len(self._workers.run(cells))
        for one in cells:
            result = self._store.get(one)
            if result is not None:
                self.results[one.arm, one.lr, one.seed] = result


def multipliers_of(study: Study, arm: Arm, results: Results) -> tuple[tuple[str, float], ...]:
    """Return what multiplies the rate of each layer: the other arm's mean scale there, over its runs."""
    source = study.arms[arm.multipliers_from or ""]
    lr = best_learning_rate(results, source.name, source.learning_rates, study.select_seeds)
    found: dict[str, list[float]] = {}
    for seed in study.seeds:
        if lr is not None and (source.name, lr, seed) in results:
            for name, scale in mean_scales(results[source.name, lr, seed]).items():
                found.setdefault(name, []).append(scale)
    return tuple((name, mean(scales)) for name, scales in sorted(found.items()))
