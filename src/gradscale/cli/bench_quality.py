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

  gradscale bench quality recipes/quality/smoke.yaml --output_dir runs/smoke --jobs 2
  gradscale bench quality recipes/quality/ablations.yaml --dry-run
  gradscale bench quality runs/quality-small runs/quality-docstrings      # worst case of each optimizer over both"""


def main(argv: Sequence[str]) -> int:
    """Run studies, print their tables, and return the exit status."""
    arguments = _parser().parse_args(argv)
    again = f"gradscale bench quality {shlex.join(argv)}"
    try:
        # Here, not above: --help is answered without loading torch.
        from gradscale.data.source import DataError

        try:
            failed = _run(arguments)
        except DataError as error:
            raise ConfigError(str(error)) from None
    except ConfigError as error:
        print(f"gradscale bench quality: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except KeyboardInterrupt:
        print(f"\nstopped; what has finished is kept. Continue with:\n  {again}", file=sys.stderr)
        return _INTERRUPTED
    if failed:
        print(f"{failed} cells failed; the command starts them anew:\n  {again}", file=sys.stderr)
    return _FAILED if failed else _OK


def _run(arguments: argparse.Namespace) -> int:
    """Run what is not a folder of a finished study, compare where there are several; return how many cells failed."""
    from gradscale.quality.plan import plan
    from gradscale.quality.plan import text as text_of_plan
    from gradscale.quality.run import run_study
    from gradscale.quality.study import read_study, with_baseline
    from gradscale.quality.tasks import compare
    from gradscale.training.files import write_text

    several = len(arguments.study) > 1
    studies = {path: None if several and path.is_dir() else read_study(path) for path in arguments.study}
    if arguments.baseline is not None:
        studies = {path: study and with_baseline(study, arguments.baseline) for path, study in studies.items()}
    folders = _folders(arguments.study, arguments.output_dir)
    threads = arguments.threads or max(1, (os.cpu_count() or 1) // arguments.jobs)
    failed = 0
    for path, study in studies.items():
        folder = folders[path]
        if study is None:
            continue
        if arguments.dry_run:
            print(f"{text_of_plan(study, plan(study, folder), arguments.jobs)}\n{folder}\n")
            continue
        text, broken = run_study(
            study,
            folder,
            jobs=arguments.jobs,
            threads=threads,
            device=arguments.device,
            said=lambda line: print(line, flush=True),
        )
        print(f"\n{text}\n{folder}")
        failed += broken
    if several and not arguments.dry_run:
        text = compare({folder.name: folder for folder in folders.values()})
        page = (arguments.output_dir or Path("runs")) / "quality-tasks.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, text)
        print(f"\n{text}\n{page}")
    return failed


def _folders(paths: Sequence[Path], output_dir: Path | None) -> dict[Path, Path]:
    """Return where each study's results are.

    Raises:
        ConfigError: two would be in the same folder, or have the same name in the table.
    """
    folders = {}
    for path in paths:
        if len(paths) > 1 and path.is_dir():
            folders[path] = path
        elif len(paths) == 1 and output_dir is not None:
            folders[path] = output_dir
        else:
            folders[path] = (output_dir or Path("runs")) / f"quality-{path.stem}"
    names = [folder.resolve().name for folder in folders.values()]
    if len(names) < len(paths) or len(set(names)) < len(names):
        raise ConfigError(f"the studies are called {', '.join(path.stem for path in paths)}: give each another name")
    return folders


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradscale bench quality",
        description="Train one model with several optimizers, each over its learning rates, on the same data, seeds "
        "and initial weights, and compare them at their best. Of several studies, say on which each fares worst.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "study", type=Path, nargs="+", metavar="STUDY.yaml", help="what is compared, on what; or folders of studies"
    )
    parser.add_argument(
        "--output_dir", type=Path, metavar="DIR", help="[runs/quality-STUDY; of several studies the folder around]"
    )
    parser.add_argument("--baseline", metavar="NAME", help="the optimizer to compare with [the study's]")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="cells at a time [1]")
    parser.add_argument("--threads", type=_positive, metavar="N", help="of each on the CPU [cores / jobs]")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda [cpu]")
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="list what is missing, and about how long it takes"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)
