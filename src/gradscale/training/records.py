"""Reading what runs logged: loss curves and scale histories, from finished and from interrupted runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradscale.training.errors import ConfigError
from gradscale.training.files import read_json
from gradscale.training.lines_file import read_lines
from gradscale.training.output_folder import NORMS, RUN, SCALES, STATE, SUMMARY, find_checkpoints

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class RunRecord:
    """What one run logged.

    Attributes:
        folder: of the run.
        label: its optimizer, with the part of the folder's path that tells runs with the same one apart.
        train_loss: (step, loss) of the training log.
        validation_loss: (step, loss) of the evaluations.
        scales: the lines of `scales.jsonl`.
        norms: the lines of `gradient_norms.jsonl`.
        whole_norm: (step, norm of all gradients before clipping) of the training log.
    """

    folder: Path
    label: str
    train_loss: Curve
    validation_loss: Curve
    scales: list[dict[str, Any]]
    norms: list[dict[str, Any]]
    whole_norm: Curve


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Return the records of the runs in `folders`: a run's own folder, or one that holds the folders of several.

    Raises:
        ConfigError: a folder is missing or holds no run, or the log of a run is damaged.
    """
    found: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {str(folder)!r}")
        # In the order of the command that ran them, as its summary has it.
        order = [run.get("optim") for run in (read_json(folder / SUMMARY) or {}).get("runs", [])]
        inner = sorted(path for path in folder.iterdir() if path.is_dir())
        inner.sort(key=lambda path: order.index(path.name) if path.name in order else len(order))
        candidates = [folder, *inner]
        inside = {path: state for path in candidates if (state := _state(path)) is not None}
        # A checkpoint also holds a state; it belongs to the run that wrote it.
        inside = {path: state for path, state in inside.items() if not path.name.startswith("checkpoint-")}
        if not inside:
            raise ConfigError(f"{str(folder)!r} holds no run (no {STATE} and no checkpoint in it or one level below)")
        found |= inside
    names = {path: (read_json(path / RUN) or {}).get("optim") or path.name for path in found}
    told_apart = _told_apart(list(found))
    shared = [name for name in names.values() if list(names.values()).count(name) > 1]
    return [
        RunRecord(
            folder=path,
            label=f"{names[path]} ({told_apart[path]})" if names[path] in shared else names[path],
            train_loss=_curve(state, "loss"),
            validation_loss=_curve(state, "eval_loss"),
            scales=read_lines(path / SCALES),
            norms=read_lines(path / NORMS),
            whole_norm=_curve(state, "grad_norm"),
        )
        for path, state in found.items()
    ]


def _state(folder: Path) -> dict[str, Any] | None:
    """Return the Trainer's state at the end of the run, or of its last checkpoint whose state is complete.

    Raises:
        ConfigError: there is a state, and it is damaged.
    """
    final, saved = folder / STATE, [path / STATE for path in reversed(find_checkpoints(folder))]
    for path in [final] if final.is_file() else saved:
        state = read_json(path)
        if isinstance(state, dict) and isinstance(state.get("log_history"), list):
            return state
    if final.is_file() or saved:
        path = final if final.is_file() else saved[0]
        raise ConfigError(f"{str(path)!r} is damaged: it is no log of a Trainer, or its end is missing")
    return None


def _told_apart(folders: Sequence[Path]) -> dict[Path, str]:
    """Return of each path what differs from the others: all but the beginning and the end that they share."""
    if len(folders) == 1:
        return {folder: folder.name for folder in folders}
    parts = {folder: Path(os.path.abspath(folder)).parts for folder in folders}
    first = len(os.path.commonprefix([*parts.values()]))
    last = len(os.path.commonprefix([one[first:][::-1] for one in parts.values()]))
    return {folder: "/".join(one[first : len(one) - last]) or folder.name for folder, one in parts.items()}


def _curve(state: dict[str, Any], key: str) -> Curve:
    points = {int(entry["step"]): entry[key] for entry in state["log_history"] if key in entry}
    return [(step, float("nan") if value is None else float(value)) for step, value in sorted(points.items())]
