"""One cell of a sweep: a `gradscale train` in a process of its own, kept once it has finished."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gradscale.training.files import read_json, write_json
from gradscale.training.output_folder import RUN, find_checkpoints

ASKED = "cell.json"  # what was asked for, so that another sweep's result is not taken for this one's
LOG = "train.log"
FINISHED = ("finished", "diverged")


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        values: of the axes.
        title: for messages.
        folder: with everything of the cell.
        config: the recipe.
        options: those of `gradscale train`, beside where to write and how to go on.
    """

    values: tuple[str, ...]
    title: str
    folder: Path
    config: Path
    options: tuple[str, ...]

    @property
    def run(self) -> Path:
        """The folder of the training run."""
        return self.folder / "run"

    @property
    def command(self) -> list[str]:
        """Arguments of `gradscale train` that run the cell from its beginning."""
        return [str(self.config), *self.options, "--output_dir", str(self.run)]

    def result(self) -> dict[str, Any] | None:
        """What the cell came to; None where that is not known, or was of another recipe or other options."""
        if read_json(self.folder / ASKED) != self._asked():
            return None
        found = read_json(self.run / RUN)
        return found if isinstance(found, dict) and found.get("status") in FINISHED else None

    def start(self, log: IO[str]) -> subprocess.Popen[str]:
        """Begin the cell, or go on with it from its last checkpoint.

        Args:
            log: open file for what it prints.
        """
        same = read_json(self.folder / ASKED) == self._asked()
        go_on = same and bool(find_checkpoints(self.run))
        write_json(self.folder / ASKED, self._asked())
        how = ["--resume_from_checkpoint", "last"] if go_on else ["--overwrite_output_dir", "true"]
        command = [sys.executable, "-m", "gradscale.cli.main", "train", *self.command, *how]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)

    def _asked(self) -> dict[str, Any]:
        recipe = hashlib.sha256(self.config.read_bytes()).hexdigest()
        return {"recipe_sha256": recipe, "options": list(self.options)}


def last_lines(path: Path, count: int = 15) -> str:
    """Return the end of a log."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def options_of(keys: Sequence[str], values: Sequence[str]) -> list[str]:
    """Return values as options of `gradscale train`."""
    return [part for key, value in zip(keys, values, strict=True) for part in (f"--{key}", value)]
