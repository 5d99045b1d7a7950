"""`scales.jsonl`: one line per grouping of an optimizer that groups, kept whole across resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from gradscale.training.files import finite, write_text
from gradscale.training.lines_file import read_lines
from gradscale.training.output_folder import SCALES
from gradscale.training.timing import inner_optimizer


class ScaleLog(TrainerCallback):
    """Trainer callback that writes every grouping report of the optimizer to `folder/scales.jsonl`.

    A line holds the Trainer's `step`, `global_mda`, `waiting` (names of layers) and `layers`: name to `numel`,
    `counts`, `centroids`, `mda` and `scales`, the last four lists of one number per cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SCALES
        self._last: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the groupings of steps that this run will take (again)."""
        if not state.is_world_process_zero:
            return
        kept = [row for row in read_lines(self.path) if row["step"] <= state.global_step]
        if kept:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        else:
            self.path.unlink(missing_ok=True)
        report = _report(kwargs.get("optimizer"))
        self._last = None if report is None else report.step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Append a line when the optimizer has grouped in this step."""
        report = _report(kwargs.get("optimizer"))
        if report is None or report.step == self._last or not state.is_world_process_zero:
            return
        self._last = report.step
        layers = {}
        for layer in report.layers:
            row = dataclasses.asdict(layer)
            layers[row.pop("name")] = row
        line = {
            "step": state.global_step,
            "global_mda": report.global_mda,
            "waiting": list(report.waiting),
            "layers": layers,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(line)) + "\n")


def _report(optimizer: Any) -> Any:
    return getattr(inner_optimizer(optimizer), "grouping_report", None)
