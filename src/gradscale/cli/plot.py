"""`gradscale plot RUN_DIR... [--output DIR]`: draw again what runs logged, several side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gradscale.training.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and return the exit code: 0, 1 without matplotlib, 2 for a folder without a run."""
    parser = argparse.ArgumentParser(
        prog="gradscale plot",
        description="Draw loss.png/.svg and scales.png/.svg from what runs of `gradscale train` logged.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_DIR", help="output_dir of a run; several compare")
    parser.add_argument("--output", type=Path, help="folder of the pictures [the first RUN_DIR]")
    arguments = parser.parse_args(sys.argv[2:] if argv is None else argv)
    try:
        from gradscale.training.plots import draw
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("gradscale plot needs matplotlib: pip install 'gradscale[plot]'", file=sys.stderr)
        return 1
    try:
        for path in draw(arguments.folders, arguments.output or arguments.folders[0]):
            print(path)
    except ConfigError as error:
        print(f"gradscale plot: {error}", file=sys.stderr)
        return 2
    return 0
