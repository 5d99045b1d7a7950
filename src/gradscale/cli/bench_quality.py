"""`gradscale bench quality STUDY.yaml`: which optimizer ends lower, each at its own best learning rate."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from gradscale.training.errors import ConfigError

COMMAND, SUMMARY = "quality", "final losses of optimizers, each at its own best learning rate"
_OK, _FAILED, _USAGE_ERROR, _INTERRUPTED = 0, 1, 2, 130
_EPILOG = """\
exit status: 0 done, 1 cells failed, 2 the study or an option is wrong, 130 Ctrl-C. Finished cells are kept: the same
command goes on with what is missing. See docs/quality.md.

  gradscale bench quality recipes/quality/smoke.yaml --output_dir runs/smoke --jobs 2"""


def main(argv: Sequence[str]) -> int:
    """Run a study, print its table, and return the exit status."""
    arguments = _parser().parse_args(argv)
    again = f"gradscale bench quality {shlex.join(argv)}"
    try:
        # Here, not above: --help is answered without loading torch.
        from gradscale.data.source import DataError
        from gradscale.quality.run import run_study
        from gradscale.quality.study import read_study

        study = read_study(arguments.study)
        output_dir = arguments.output_dir or Path("runs") / f"quality-{arguments.study.stem}"
        threads = arguments.threads or max(1, (os.cpu_count() or 1) // arguments.jobs)
        try:
            text, failed = run_study(
                study,
                output_dir,
                jobs=arguments.jobs,
                threads=threads,
                device=arguments.device,
                said=lambda line: print(line, flush=True),
            )
        except DataError as error:
            raise ConfigError(str(error)) from None
    except ConfigError as error:
        print(f"gradscale bench quality: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except KeyboardInterrupt:
        print(f"\nstopped; what has finished is kept. Continue with:\n  {again}", file=sys.stderr)
        return _INTERRUPTED
    print(f"\n{text}\n{output_dir}")
    if failed:
        print(f"{failed} cells failed; the command starts them anew:\n  {again}", file=sys.stderr)
    return _FAILED if failed else _OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradscale bench quality",
        description="Train one model with several optimizers, each over its learning rates, on the same data, seeds "
        "and initial weights, and compare them at their best.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="what is compared, on what")
    parser.add_argument("--output_dir", type=Path, metavar="DIR", help="[runs/quality-STUDY]")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="cells at a time [1]")
    parser.add_argument("--threads", type=_positive, metavar="N", help="of each on the CPU [cores / jobs]")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda [cpu]")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)
