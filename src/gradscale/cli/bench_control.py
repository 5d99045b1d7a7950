"""`gradscale bench clipping` and `gradscale bench loss-scale`: ALSDGC's rules beside those of others."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from gradscale.training.errors import ConfigError

_EPILOG = """\
exit status: 0 measured, 2 an option is wrong

  gradscale bench {0}
  gradscale bench {0} --seeds 5 --json {0}.json --plot {0}.png"""


def add_parsers(commands: Any) -> None:
    """Add the two subcommands."""
    clipping = _command(commands, "clipping", "clip thresholds on scripted norms and on a small model")
    clipping.add_argument("--seeds", type=_positive, default=2, metavar="N", help="of traces and of training [2]")
    clipping.add_argument("--steps", type=_count, default=250, metavar="N", help="of training; 0: none [250]")
    clipping.add_argument("--trace_steps", type=_trace, default=2000, metavar="N", help="of a trace [2000]")
    clipping.add_argument(
        "--noise", type=_share_of_e, default=0.15, metavar="X", help="standard deviation of ln(norm) in traces [0.15]"
    )
    clipping.add_argument(
        "--lr", type=_rate, nargs="+", default=[1e-3, 4e-3], metavar="LR", help="learning rates of AdamW [1e-3 4e-3]"
    )
    clipping.add_argument("--bad", type=_share, default=0.03, metavar="X", help="share of bad batches [0.03]")
    scale = _command(commands, "loss-scale", "loss scales along a ceiling that moves, with bad batches")
    scale.add_argument("--seeds", type=_positive, default=5, metavar="N", help="runs of each rule [5]")
    scale.add_argument("--steps", type=_positive, default=20_000, metavar="N", help="of a run [20000]")
    scale.add_argument("--bad", type=_share, default=0.005, metavar="X", help="share of NaN losses [0.005]")


def bench(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Measure; return the report and its text.

    Raises:
        ConfigError: the machine lacks what the options need.
    """
    from gradscale.training.files import write_json

    if arguments.command == "loss-scale":
        from gradscale.bench import loss_scale as chosen

        report = chosen.measure(seeds=arguments.seeds, steps=arguments.steps, bad_loss=arguments.bad)
        text, draw = chosen.text(report), chosen.draw
    else:
        from gradscale.bench import clipping
        from gradscale.data.source import DataError

        try:
            report = clipping.measure(
                seeds=arguments.seeds,
                trace_steps=arguments.trace_steps,
                noise=arguments.noise,
                train_steps=arguments.steps,
                rates=arguments.lr,
                bad=arguments.bad,
            )
        except DataError as error:
            raise ConfigError(str(error)) from error
        text, draw = clipping.text(report), clipping.draw
    method = {name: value for name, value in vars(arguments).items() if name not in ("json", "plot")}
    report |= {"method": method, "skipped": []}
    if arguments.json:
        write_json(arguments.json, report)
    if arguments.plot:
        draw(report, arguments.plot)
    return report, text


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"Compare {summary}. See docs/alsdgc.md.",
        epilog=_EPILOG.format(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (.png, .svg or .pdf)")
    return parser


def _positive(text: str) -> int:
    return _integer(text, 1)


def _count(text: str) -> int:
    return _integer(text, 0)


def _trace(text: str) -> int:
    return _integer(text, 700)  # the trouble begins at step 500


def _integer(text: str, least: int) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {least}")
    return int(text)


def _rate(text: str) -> float:
    return _number(text, math.inf)


def _share_of_e(text: str) -> float:
    return _number(text, 1.0)


def _share(text: str) -> float:
    return _number(text, 0.5, zero=True)


def _number(text: str, most: float, *, zero: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= most and math.isfinite(value)) or (value == 0 and not zero):
        least = "from 0" if zero else "above 0"
        upper = "" if math.isinf(most) else f" to {most:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number {least}{upper}")
    return value
