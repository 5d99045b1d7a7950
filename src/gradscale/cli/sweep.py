"""`gradscale sweep CONFIG.yaml --over KEY=VALUE,VALUE,... [--over ...] [--key value ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gradscale.training.errors import ConfigError

_EXAMPLE = """\
example:
  gradscale sweep recipes/quickstart.yaml --over learning_rate=5e-4,1e-3,2e-3,4e-3 \\
      --over per_device_train_batch_size=8,16,32 --over 'alsdgc=off,robust' --max_steps 100 --jobs 2

Every key of `gradscale train` can be an axis. Values with commas are quoted:
  --over 'optim_args="n_clusters=2","n_clusters=3"'.
Whatever stands besides goes to `gradscale train` for all cells. Finished cells are kept: the same command goes on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep and return the exit code: 0, 1 if cells failed, 2 for settings, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="gradscale sweep",
        description="Train a recipe over a grid of settings; write a table and a heat map of the validation losses.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="recipe of gradscale train")
    parser.add_argument(
        "--over", action="append", default=[], metavar="KEY=VALUE,...", help="an axis; give one or more"
    )
    parser.add_argument("--output_dir", type=Path, help="folder of the sweep [runs/sweep_CONFIG]")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time [1]")
    arguments = list(sys.argv[2:] if argv is None else argv)
    known, options = parser.parse_known_args(arguments)
    try:
        # Here, not above: --help is answered without loading anything.
        from gradscale.sweep.grid import read_axes
        from gradscale.sweep.sweep import check_folder, command_line, make_cells, run_sweep

        if known.jobs < 1:
            raise ConfigError(f"--jobs {known.jobs} is not allowed: expected an integer of at least 1")
        axes = read_axes(known.over)
        output_dir = known.output_dir or Path("runs") / f"sweep_{known.config.stem}"
        check_folder(output_dir)
        cells = make_cells(known.config, axes, options, output_dir)
    except ConfigError as error:
        print(f"gradscale sweep: {error}", file=sys.stderr)
        return 2
    return run_sweep(cells, axes, output_dir, jobs=known.jobs, again=command_line(arguments))
