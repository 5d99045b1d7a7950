"""The tables of a study in the layout of the DGS paper's (method, reset, accuracy, iterations), and of its settings."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradscale.training.settings import optim_args_text
from gradscale.training.summary import format_table
from gradscale.vision.methods import Cell, Method
from gradscale.vision.resnet import title

Result = Mapping[str, Any]
Rows = list[list[str]]
_SETTINGS = (
    *("Method", "Reset", "--optim", "Options"),
    *("Peak learning rate", "Weight decay", "Peak accuracy (%), iteration", "ms per iteration"),
)


@dataclass(frozen=True)
class Table:
    """Cells of text under a heading.

    Attributes:
        heading: what the table shows.
        header: names of the columns.
        rows: one list for each line.
        left: so many columns at the beginning are words, the others numbers.
    """

    heading: str
    header: tuple[str, ...]
    rows: Rows
    left: int

    @property
    def text(self) -> str:
        """The table for a terminal."""
        return f"{self.heading}\n{format_table(self.header, self.rows, left=self.left)}"

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        marks = ["---" if index < self.left else "--:" for index in range(len(self.header))]
        lines = [self.header, marks, *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"### {self.heading}\n\n{body}"


def make_tables(
    results: Mapping[Cell, Result],
    *,
    models: Mapping[str, Sequence[str]],
    methods: Sequence[Method],
    seeds: int,
    data: str,
    target: float,
    weight_decay: float,
) -> list[Table]:
    """Return a table of results for each `table` that the methods name, and one of peaks and settings.

    Args:
        results: what each cell gave.
        models: the resets of each model.
        methods: in the order of the lines.
        seeds: seeds of the study.
        data: what the images are.
        target: the accuracy in percent whose step is given.
        weight_decay: of methods that do not set their own.
    """
    spread = f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "1 seed"
    tables = []
    for name in dict.fromkeys(method.table for method in methods):
        own = [method for method in methods if method.table == name]
        rows = [
            [line, reset, _accuracy(runs), iterations(runs)] for line, reset, _, runs in _lines(results, models, own)
        ]
        header = ("Method", "Reset", "Accuracy (%)", f"Iterations to {target:g} %")
        tables.append(Table(f"{name} on {data} ({spread})", header, rows, left=2))
    rows = []
    for line, reset, method, runs in _lines(results, models, methods):
        decay = weight_decay if method.weight_decay is None else method.weight_decay
        options = method.options(reset.lower() if method.reset_args else None)
        rows.append(
            [f"{method.table}: {line}", reset, method.optim, optim_args_text(options).replace(",", ", ") or "-"]
            + [f"{method.learning_rate:g}", f"{decay:g}", _best(runs), _milliseconds(runs)]
        )
    tables.append(Table(f"Peaks and settings on {data}", _SETTINGS, rows, left=4))
    return tables


def _lines(
    results: Mapping[Cell, Result], models: Mapping[str, Sequence[str]], methods: Sequence[Method]
) -> Iterator[tuple[str, str, Method, list[Result]]]:
    """Yield the lines of a table. A method without resets has the same runs under each reset of a model."""
    for model, resets in models.items():
        for reset in resets:
            for method in methods:
                own = reset if method.reset_args else None
                runs = [
                    result
                    for cell, result in results.items()
                    if (cell.model, cell.method, cell.reset) == (model, method, own)
                ]
                yield f"{title(model)} - {method.name}", reset.capitalize(), method, runs


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Return the mean, with the sample standard deviation where there are two values at least."""
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):,.{digits}f}"


def _accuracy(runs: Sequence[Result]) -> str:
    if not runs:
        return "-"
    diverged = sum(run["status"] == "diverged" for run in runs)
    note = f" ({diverged} of {len(runs)} diverged)" if diverged else ""
    return mean_and_spread([run["accuracy"] for run in runs], 2) + note


def iterations(runs: Sequence[Result]) -> str:
    """Return the iterations to the target: over the seeds that reached it, with their number if not all did."""
    reached = [run["steps_to_target"] for run in runs if run["steps_to_target"] is not None]
    if not runs:
        return "-"
    if not reached:
        return "not reached"
    note = f" ({len(reached)} of {len(runs)} seeds)" if len(reached) < len(runs) else ""
    return mean_and_spread(reached, 0) + note


def _best(runs: Sequence[Result]) -> str:
    if not runs:
        return "-"
    accuracy = mean_and_spread([run["best_accuracy"] for run in runs], 2)
    return f"{accuracy}, {mean_and_spread([run['best_step'] for run in runs], 0)}"


def _milliseconds(runs: Sequence[Result]) -> str:
    known = [run["milliseconds_per_step"] for run in runs if run["milliseconds_per_step"] is not None]
    return mean_and_spread(known, 1) if known else "-"
