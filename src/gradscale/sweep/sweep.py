"""A sweep from the grid to the table: cells in parallel processes, of which finished ones are kept."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from gradscale.sweep.cell import LOG, Cell, last_lines, options_of
from gradscale.sweep.grid import Axis, cells_of, folder_name, title
from gradscale.sweep.report import write_report
from gradscale.training.errors import ConfigError

CELLS = "cells"
_POLL_SECONDS = 0.2
Running = dict[Any, tuple[Cell, IO[str], float]]


def make_cells(config: Path, axes: Sequence[Axis], options: Sequence[str], output_dir: Path) -> list[Cell]:
    """Return the cells, once `gradscale train` has taken the settings of each.

    Args:
        config: the recipe.
        axes: of the grid.
        options: of `gradscale train`, for all cells alike.
        output_dir: of the sweep.

    Raises:
        ConfigError: some settings cannot be used. Nothing has been written.
    """
    from gradscale.training.settings import read_command

    keys = [axis.key for axis in axes]
    cells = []
    for values in cells_of(axes):
        folder = output_dir / CELLS / folder_name(axes, values)
        own = (*options, *options_of(keys, values))
        cell = Cell(values, title(axes, values), folder, config, own)
        settings = read_command(cell.command)
        if len(settings.optimizers) > 1:
            # A cell has one result. Another optimizer is an axis of its own.
            cell = Cell(values, cell.title, folder, config, (*own, "--compare_optim", "null"))
            read_command(cell.command)
        cells.append(cell)
    return cells


def run_sweep(cells: Sequence[Cell], axes: Sequence[Axis], output_dir: Path, *, jobs: int, again: str) -> int:
    """Run what is missing, write table and heat map, and return the exit code: 0, 1 if cells failed, 130 for Ctrl-C.

    Args:
        cells: from `make_cells`.
        axes: of the grid.
        output_dir: of the sweep.
        jobs: cells at a time.
        again: the command that goes on with this sweep.
    """
    waiting = [cell for cell in cells if cell.result() is None]
    print(f"{len(cells)} cells, {len(cells) - len(waiting)} of them finished already, into {output_dir}", flush=True)
    failed, running = [], {}
    try:
        running = _fill({}, waiting, jobs)
        while running:
            time.sleep(_POLL_SECONDS)
            for process in [process for process in running if process.poll() is not None]:
                cell, log, began = running.pop(process)
                log.close()
                result = cell.result()
                if result is None:
                    failed.append(cell)
                    print(f"{cell.title}: failed with exit code {process.returncode}; the end of {cell.folder / LOG}:")
                    print(last_lines(cell.folder / LOG), flush=True)
                else:
                    print(f"{cell.title}: {said_of(result)}, {time.monotonic() - began:.0f} s", flush=True)
            running = _fill(running, waiting, jobs)
    except KeyboardInterrupt:
        # The terminal has told the cells as well; each finishes its step and writes a checkpoint.
        for process, (_, log, _) in running.items():
            process.wait()
            log.close()
        done = sum(cell.result() is not None for cell in cells)
        print(f"\nstopped; {len(cells) - done} cells are missing. Continue with:\n  {again}", file=sys.stderr)
        return 130
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
    for path in write_report(output_dir, axes, {cell.values: cell.result() for cell in cells}):
        print(path)
    if failed:
        print(f"{len(failed)} cells failed; the command starts them anew:\n  {again}", file=sys.stderr)
    return 1 if failed else 0


def said_of(result: dict[str, Any]) -> str:
    """What a cell came to, in words."""
    loss = result.get("validation_loss")
    if result["status"] == "diverged":
        return "diverged"
    return "finished, without a validation loss" if loss is None else f"validation loss {loss:.4f}"


def _fill(running: Running, waiting: list[Cell], jobs: int) -> Running:
    while waiting and len(running) < jobs:
        cell = waiting.pop(0)
        cell.folder.mkdir(parents=True, exist_ok=True)
        log = (cell.folder / LOG).open("a", encoding="utf-8")
        running[cell.start(log)] = cell, log, time.monotonic()
    return running


def command_line(arguments: Sequence[str]) -> str:
    """Return the command that was given, to be copied."""
    return f"gradscale sweep {shlex.join(arguments)}"


def check_folder(output_dir: Path) -> None:
    """Refuse a folder that holds something else than a sweep.

    Raises:
        ConfigError: it is a file, or has files and no sweep.
    """
    name = f"output_dir={str(output_dir)!r}"
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"{name} is a file, expected a folder")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (output_dir / CELLS).is_dir():
        raise ConfigError(f"{name} is not empty and holds no sweep: set another --output_dir")
