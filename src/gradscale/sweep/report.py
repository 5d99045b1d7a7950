"""What a sweep came to: a JSON file, a table in Markdown, and a heat map where matplotlib is installed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradscale.sweep.grid import Axis, Values, cells_of
from gradscale.training.errors import ConfigError
from gradscale.training.files import read_json, write_json, write_text

REPORT = "sweep.json"
Results = Mapping[Values, dict[str, Any] | None]
_KEPT = ("status", "validation_loss", "train_loss", "global_step", "wall_seconds", "optim", "seed")


def loss_of(result: Mapping[str, Any] | None) -> float:
    """Return the validation loss, inf of what diverged, NaN of what is missing or was not evaluated."""
    if result is None:
        return math.nan
    if result["status"] == "diverged":
        return math.inf
    loss = result.get("validation_loss")
    return math.nan if loss is None else float(loss)


def write_report(output_dir: Path, axes: Sequence[Axis], results: Results) -> list[Path]:
    """Write `sweep.json`, `sweep.md` and, with matplotlib, `heat_map.png` and `.svg`; return what was written."""
    cells = [
        {
            **{axis.key: value for axis, value in zip(axes, values, strict=True)},
            **({"status": "missing"} if result is None else {key: result.get(key) for key in _KEPT}),
        }
        for values, result in results.items()
    ]
    written = [output_dir / REPORT, output_dir / "sweep.md"]
    write_json(written[0], {"axes": {axis.key: list(axis.values) for axis in axes}, "cells": cells})
    text = table(axes, results)
    write_text(written[1], text)
    print(f"\n{text}")
    try:
        from gradscale.sweep.heat_map import draw
    except ImportError:
        print("no heat map: pip install 'gradscale[plot]'")
        return written
    return [*written, *draw(axes, results, output_dir)]


def read_report(folder: Path) -> tuple[list[Axis], Results]:
    """Return the axes and the results of a sweep that has been reported.

    Raises:
        ConfigError: its cells have not been reported yet, or the report is damaged.
    """
    path = folder / REPORT
    if not path.is_file():
        raise ConfigError(f"the sweep in {str(folder)!r} has not ended ({REPORT} is missing): start it again")
    report = read_json(path)
    try:
        axes = [Axis(key, tuple(values)) for key, values in report["axes"].items()]
        # By place: what a cell came to may stand under the key of an axis, such as seed.
        results: Results = {
            values: None if cell["status"] == "missing" else cell
            for values, cell in zip(cells_of(axes), report["cells"], strict=True)
        }
        whole = bool(axes) and bool(results)
    except (TypeError, KeyError, AttributeError, ValueError):
        whole = False
    if not whole:
        raise ConfigError(f"{str(path)!r} is damaged: it is no report of a sweep, or its end is missing")
    return axes, results


def panels(axes: Sequence[Axis]) -> Iterator[tuple[str, Axis, Axis, Values]]:
    """Yield title, rows, columns and further values of each table of two axes."""
    rows, columns = axes[0], axes[1] if len(axes) > 1 else Axis("", ("",))
    for rest in itertools.product(*(axis.values for axis in axes[2:])):
        name = ", ".join(f"{axis.key}={value}" for axis, value in zip(axes[2:], rest, strict=True))
        yield name, rows, columns, rest


def at(results: Results, row: str, column: str, rest: Values) -> float:
    """Return the loss at a place of a panel."""
    return loss_of(results[(row, column, *rest) if column else (row, *rest)])


def table(axes: Sequence[Axis], results: Results) -> str:
    """Return the validation losses, the best of each table in bold."""
    blocks = []
    for name, rows, columns, rest in panels(axes):
        losses = {(row, column): at(results, row, column, rest) for row in rows.values for column in columns.values}
        best = min((loss for loss in losses.values() if math.isfinite(loss)), default=math.nan)
        header = [
            f"{rows.key} \\ {columns.key}" if columns.key else rows.key,
            *(column or "loss" for column in columns.values),
        ]
        lines = [f"| {' | '.join(header)} |", "|---|" + "--:|" * len(columns.values)]
        for row in rows.values:
            shown = [_shown(losses[row, column], best) for column in columns.values]
            lines.append(f"| {' | '.join([row, *shown])} |")
        blocks.append((f"**{name}**\n\n" if name else "") + "\n".join(lines))
    return "Validation loss, nats per token\n\n" + "\n\n".join(blocks) + "\n"


def _shown(loss: float, best: float) -> str:
    if math.isnan(loss):
        return "missing"
    if math.isinf(loss):
        return "diverged"
    return f"**{loss:.4f}**" if loss == best else f"{loss:.4f}"
