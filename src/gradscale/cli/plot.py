"""`gradscale plot RUN... [--what ...] [--layers ...] [--width ...] [--output DIR]`: pictures of what runs logged."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from gradscale.training.errors import ConfigError

_EXAMPLES = """\
pictures, each as PNG and SVG; without --what all that a RUN has data for:
  loss      training and validation losses of all runs
  scales    scales of every layer over the steps (scales.jsonl)
  clusters  momentum and learning rates of each cluster, in some layers of a checkpoint (optimizer.pt)
  norms     gradient norms over the steps (gradient_norms.jsonl)
  heatmap   losses of a sweep over its grid (sweep.json)

examples:
  gradscale plot runs/quickstart
  gradscale plot runs/a runs/b --what loss --width column --output figures
  gradscale plot runs/a/checkpoint-500 --what clusters --layers q_proj down_proj
  gradscale plot runs/sweep_quickstart"""
_PICTURES = ("loss", "scales", "clusters", "norms", "heatmap")
_WIDTHS = {"column": 3.3, "text": 6.8}
_NARROWEST, _WIDEST = 2.5, 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and return the exit code: 0, 1 without matplotlib, 2 for a folder or an option that gives no picture."""
    arguments = _parser().parse_args(sys.argv[2:] if argv is None else argv)
    try:
        from gradscale.plots.draw import draw
        from gradscale.plots.folders import is_checkpoint
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("gradscale plot needs matplotlib: pip install 'gradscale[plot]'", file=sys.stderr)
        return 1
    first: Path = arguments.runs[0]
    try:
        drawn = draw(
            arguments.runs,
            # A checkpoint is left as the Trainer wrote it.
            arguments.output or (first.absolute().parent if is_checkpoint(first) else first),
            arguments.what or _PICTURES,
            required=arguments.what is not None,
            width=_width(arguments.width),
            layers=_layers(arguments),
        )
        for remark in drawn.remarks:
            print(remark, file=sys.stderr)
        if not drawn.files:
            names = ", ".join(map(str, arguments.runs))
            raise ConfigError(f"nothing to draw in {names}: no loss, scales, clusters or gradient norms were logged")
    except ConfigError as error:
        print(f"gradscale plot: {error}", file=sys.stderr)
        return 2
    for path in drawn.files:
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradscale plot",
        description="Draw what runs have logged, and what a checkpoint or a sweep holds.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, of a checkpoint or of a sweep; runs compare"
    )
    parser.add_argument("--what", nargs="+", choices=_PICTURES, metavar="PICTURE", help="pictures to draw [all]")
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="PATTERN",
        help="layers of clusters and norms: part of a name, or a pattern with * [a few; kinds of layers]",
    )
    parser.add_argument("--width", default="text", help="inches, or column (3.3) or text (6.8) of a paper [text]")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the pictures [the first RUN]")
    return parser


def _width(text: str) -> float:
    if text in _WIDTHS:
        return _WIDTHS[text]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not _NARROWEST <= value <= _WIDEST:
        raise ConfigError(
            f"--width {text} is not allowed: expected column, text, or inches from {_NARROWEST:g} to {_WIDEST:g}"
        )
    return value


def _layers(arguments: argparse.Namespace) -> list[str] | None:
    layers: list[str] | None = arguments.layers
    if layers is not None and arguments.what and not {"clusters", "norms"} & set(arguments.what):
        raise ConfigError("--layers chooses layers of clusters and norms, and --what names neither")
    return layers
