"""The folder of a study: what is in it, what may be deleted, and which runs are finished already."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gradscale.training.errors import ConfigError
from gradscale.training.files import read_json
from gradscale.training.output_folder import find_checkpoints

CELLS = "cells"
RESULT = "result.json"  # one run: settings, status and results
SUMMARY = "summary.json"  # all runs
TABLES = "tables.md"
FINISHED = ("finished", "diverged")
_DEPTH = "*/*/*"  # model, method, seed


def check_study_folder(output_dir: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else than what is to be resumed or overwritten.

    Raises:
        ConfigError: `output_dir` is a file, has no study to resume, or is in use and nobody said what to do with it.
    """
    name = f"output_dir={str(output_dir)!r}"
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"{name} is a file, expected a folder")
    study = any((output_dir / CELLS).glob(f"{_DEPTH}/{RESULT}"))
    if resume:
        if not study:
            raise ConfigError(f"resume_from_checkpoint: there is no study in {name}")
        return
    if not output_dir.is_dir() or all(path.is_dir() for path in output_dir.rglob("*")) or (study and overwrite):
        return
    if not study:
        raise ConfigError(f"{name} is not empty and holds no study: set another output_dir")
    raise ConfigError(
        f"{name} already holds a study: continue it with --resume_from_checkpoint last, set another --output_dir, or "
        "delete it with --overwrite_output_dir"
    )


def clear_study_folder(output_dir: Path) -> None:
    """Delete the earlier study in `output_dir`, and nothing that no study wrote."""
    for result in (output_dir / CELLS).glob(f"{_DEPTH}/{RESULT}"):
        remove_checkpoints(result.parent)
        result.unlink()
    for name in (SUMMARY, TABLES):
        (output_dir / name).unlink(missing_ok=True)
    for path in sorted((output_dir / CELLS).rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run, also half-written ones."""
    for path in folder.glob("checkpoint-*"):
        if path.is_dir():
            shutil.rmtree(path)


def earlier_record(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier command wrote about this run, empty where it is another one: not of these settings."""
    record = read_json(folder / RESULT)
    return record if isinstance(record, dict) and record.get("settings") == settings else {}


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint of a run."""
    return next(reversed(find_checkpoints(folder)), None)
