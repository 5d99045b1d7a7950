"""What the folders that `gradscale plot` was given are: of runs, of one checkpoint, or of a sweep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradscale.sweep.report import REPORT
from gradscale.sweep.sweep import CELLS
from gradscale.training.errors import ConfigError
from gradscale.training.files import read_json
from gradscale.training.output_folder import OPTIMIZER, RUN, find_checkpoints
from gradscale.training.records import RunRecord, read_runs


@dataclass(frozen=True)
class Source:
    """One folder that was given.

    Attributes:
        folder: as given.
        runs: in it.
        checkpoints: the last of each run, or the folder itself; each with what its run is called.
        is_sweep: whether it is that of a sweep.
    """

    folder: Path
    runs: tuple[RunRecord, ...] = ()
    checkpoints: tuple[tuple[str, Path], ...] = ()
    is_sweep: bool = False


def look_into(folders: Sequence[Path]) -> list[Source]:
    """Return what each folder is; one that is given twice counts once.

    Raises:
        ConfigError: one is missing, holds nothing that can be drawn, or is damaged.
    """
    folders = list(dict.fromkeys(folders))
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {str(folder)!r}")
    # Together: runs of one optimizer are told apart by their folders.
    runs = read_runs([folder for folder in folders if not is_checkpoint(folder) and not _is_sweep(folder)])
    labels = {run.folder: run.label for run in runs}
    sources = []
    for folder in folders:
        if _is_sweep(folder):
            sources.append(Source(folder, is_sweep=True))
        elif is_checkpoint(folder):
            run = folder.absolute().parent
            label = labels.get(folder.parent) or (read_json(run / RUN) or {}).get("optim") or run.name
            sources.append(Source(folder, checkpoints=((label, folder),)))
        else:
            inside = [run for run in runs if folder in (run.folder, run.folder.parent)]
            saved = [(run.label, path) for run in inside for path in find_checkpoints(run.folder)[-1:]]
            sources.append(Source(folder, tuple(inside), tuple(saved)))
    return sources


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint and not that of a run."""
    return (folder / OPTIMIZER).is_file() or re.fullmatch(r"checkpoint-\d+", folder.absolute().name) is not None


def _is_sweep(folder: Path) -> bool:
    return (folder / REPORT).is_file() or (folder / CELLS).is_dir()
