"""What a study came to: a JSON file, a page of Markdown, and plots where matplotlib is installed."""

from __future__ import annotations

import dataclasses
import math
import platform
from pathlib import Path
from typing import Any

from gradscale.quality.statistics import Interval, Line, Results, final_loss, lines
from gradscale.quality.study import Study
from gradscale.training.files import write_json, write_text

HEADER = (
    "optimizer",
    "best lr",
    "validation loss",
    "to the baseline",
    "at equal time",
    "steps to its loss",
    "lr within 0.05",
    "area",
    "diverged",
    "ms/step",
)


def write_report(study: Study, results: Results, output_dir: Path, vocabulary: int) -> str:
    """Write `quality.json`, `quality.md` and plots; return the text.

    Args:
        study: the study.
        results: of its finished cells.
        output_dir: where to.
        vocabulary: tokens in it; a model that knows nothing has its logarithm for a loss.
    """
    rates = {arm.name: arm.learning_rates for arm in study.arms.values()}
    found = lines(
        results,
        rates,
        study.baseline,
        seeds=study.seeds,
        select_seeds=study.select_seeds,
        know_nothing=math.log(vocabulary),
    )
    text = _text(study, found, results)
    write_text(output_dir / "quality.md", text)
    write_json(output_dir / "quality.json", _record(study, found, results))
    try:
        from gradscale.quality.plots import draw
    except ImportError:
        return f"{text}\nno plots: pip install 'gradscale[plot]'"
    draw(study, found, results, output_dir)
    return text


def _record(study: Study, found: list[Line], results: Results) -> dict[str, Any]:
    cells = [
        {"arm": arm, "lr": lr, "seed": seed, "status": result["status"], "validation_loss": result["validation_loss"]}
        for (arm, lr, seed), result in results.items()
    ]
    return {
        "python": platform.python_version(),
        "seeds": study.seeds,
        "select_seeds": study.select_seeds,
        "baseline": study.baseline,
        "optimizers": [dataclasses.asdict(line) for line in found],
        "cells": cells,
    }


def _text(study: Study, found: list[Line], results: Results) -> str:
    same = study.select_seeds == study.seeds
    where = "the same seeds" if same else f"seeds {_listed(study.select_seeds)}"
    intro = (
        f"Validation loss in nats per token after {_steps(study)} steps, mean and 95 % interval over seeds "
        f"{_listed(study.seeds)}, each optimizer at its own best learning rate (chosen on {where}). Differences are to "
        f"`{study.baseline}` with the same seed: below 0 is better, bold where 0 is outside the interval."
    )
    table = [f"| {' | '.join(HEADER)} |", "|---|" + "--:|" * (len(HEADER) - 1)]
    table += [f"| {' | '.join(_row(line))} |" for line in sorted(found, key=_loss)]
    missing = sorted(set(study.arms) - {line.arm for line in found})
    rest = f"\nNot all cells of {', '.join(missing)} have finished.\n" if missing else ""
    return f"{intro}\n\n" + "\n".join(table) + f"\n{rest}\n{_sweeps(study, results)}"


def _row(line: Line) -> list[str]:
    return [
        f"`{line.arm}`",
        f"{line.best_lr:g}",
        _shown(line.loss, "{:.4f}"),
        _compared(line.difference),
        _compared(line.difference_at_equal_time),
        "" if line.steps_to_baseline is None else _share(line.steps_to_baseline),
        f"{line.near_best[0]} of {line.near_best[1]}",
        f"{line.area:.3f}",
        f"{line.diverged} of {line.runs}",
        f"{1e3 * line.step_seconds:.1f}",
    ]


def _sweeps(study: Study, results: Results) -> str:
    """A table of the mean loss at every learning rate that was tried, over the seeds that choose."""
    rates = sorted({rate for arm in study.arms.values() for rate in arm.learning_rates})
    table = [f"| optimizer | {' | '.join(f'{rate:g}' for rate in rates)} |", "|---|" + "--:|" * len(rates)]
    for arm in study.arms.values():
        row = []
        for rate in rates:
            losses = [
                final_loss(results[arm.name, rate, seed])
                for seed in study.select_seeds
                if (arm.name, rate, seed) in results
            ]
            complete = rate in arm.learning_rates and len(losses) == len(study.select_seeds)
            value = sum(losses) / len(losses) if complete else math.nan
            row.append("" if math.isnan(value) else "diverged" if math.isinf(value) else f"{value:.4f}")
        table.append(f"| `{arm.name}` | {' | '.join(row)} |")
    return "By learning rate:\n\n" + "\n".join(table) + "\n"


def _steps(study: Study) -> str:
    return " or ".join(sorted({str(arm.schedule.steps) for arm in study.arms.values()}, key=int))


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))


def _loss(line: Line) -> float:
    return line.loss.mean


def _shown(value: Interval, form: str) -> str:
    if math.isinf(value.mean):
        return "diverged"
    half = "" if math.isnan(value.half) else f" ± {value.half:.4f}"
    return form.format(value.mean) + half


def _compared(value: Interval | None) -> str:
    if value is None:
        return ""
    text = _shown(value, "{:+.4f}")
    return f"**{text}**" if value.clear_of_zero and math.isfinite(value.mean) else text


def _share(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.2f}"
