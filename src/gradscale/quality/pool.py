"""Cells in parallel processes. What has finished is kept in a file of its own, and never trained twice."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from gradscale.quality.cell import Cell, train
from gradscale.quality.identity import asked
from gradscale.quality.study import Study
from gradscale.training.errors import ConfigError
from gradscale.training.files import read_json, write_json

CELLS = "cells"


class Store:
    """The finished cells in a folder.

    Args:
        folder: of the study; `cells` is made in it.
        study: decides, with the cell, what a result is the result of.
        make: make the folder where there is none.

    Raises:
        ConfigError: the folder is a file, or holds something else.
    """

    def __init__(self, folder: Path, study: Study, *, make: bool = True) -> None:
        name = f"output_dir={str(folder)!r}"
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{name} is a file, expected a folder")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / CELLS).is_dir():
            raise ConfigError(f"{name} is not empty and holds no study: set another --output_dir")
        self._folder, self._study = folder / CELLS, study
        if make:
            self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """Return the result of a cell; None if it has not finished, or was asked for otherwise."""
        found = read_json(self._path(cell))
        return found["result"] if isinstance(found, dict) and found.get("asked") == asked(self._study, cell) else None

    def put(self, cell: Cell, result: dict[str, Any]) -> None:
        """Keep a result."""
        write_json(self._path(cell), {"asked": asked(self._study, cell), "result": result})

    def _path(self, cell: Cell) -> Path:
        key = hashlib.sha256(json.dumps(asked(self._study, cell), sort_keys=True).encode()).hexdigest()[:12]
        return self._folder / f"{cell.arm},lr={cell.lr:g},seed={cell.seed}-{key}.json".replace("/", "_")


class Workers:
    """Processes that train cells; they are started by the first one that is missing, and end with the `with` block.

    Args:
        study: the study.
        store: where results are kept.
        jobs: processes.
        threads: of each.
        device: for all of them.
        said: takes a line for each cell that has ended.
    """

    def __init__(
        self, study: Study, store: Store, *, jobs: int, threads: int, device: str, said: Callable[[str], None]
    ) -> None:
        self._study, self._store, self._device, self._said = study, store, device, said
        self._jobs, self._threads = jobs, threads
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            if kind is not None:
                _kill(self._pool)
            self._pool.shutdown(wait=False, cancel_futures=True)

    def run(self, cells: Iterable[Cell]) -> list[Cell]:
        """Train those that are missing, and return those that failed with an error (a run may diverge without)."""
        missing = [cell for cell in dict.fromkeys(cells) if self._store.get(cell) is None]
        if not missing:
            return []
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
            self._pool = ProcessPoolExecutor(self._jobs, spawn, initializer=_begin, initargs=(self._threads,))
        failed: list[Cell] = []
        try:
            waiting = {self._pool.submit(train, self._study, cell, self._device): cell for cell in missing}
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    cell = waiting.pop(future)
                    if not self._take(cell, future, f"[{len(missing) - len(waiting)}/{len(missing)}] {cell.title}"):
                        failed.append(cell)
        except BrokenProcessPool:
            self._said("a process was killed (for want of memory, perhaps); finished cells are kept")
            self._pool = None
            return [cell for cell in missing if self._store.get(cell) is None]
        return failed

    def _take(self, cell: Cell, future: Future[Any], ended: str) -> bool:
        """Keep what a cell came to; False if it failed."""
        try:
            result = future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:
            self._said(f"{ended}: failed with {type(error).__name__}: {error}")
            return False
        self._store.put(cell, result)
        loss = result["validation_loss"]
        self._said(f"{ended}: {'diverged' if loss is None else f'{loss:.4f}'}, {result['seconds']:.0f} s")
        return True


def _begin(threads: int) -> None:
    # Ctrl-C reaches every process of the terminal; the parent ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, killed perhaps, before it could say so.

    It would wait for cells for ever, or train one that nobody keeps beside the study that goes on.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _kill(pool: ProcessPoolExecutor) -> None:
    processes: Sequence[Any] = list((getattr(pool, "_processes", None) or {}).values())
    for process in processes:
        process.terminate()
