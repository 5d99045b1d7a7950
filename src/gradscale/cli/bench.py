"""`gradscale bench`: what a step costs, and how clipping and loss-scale rules fare, beside others."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradscale.bench.shapes import WORKLOADS
from gradscale.cli import bench_control, bench_quality
from gradscale.options import nearest
from gradscale.training.errors import ConfigError

_OK, _SKIPPED, _USAGE_ERROR = 0, 1, 2
_HIDDEN = "tiny"
_AGAINST = ("torch.optim.AdamW:fused=True", "torch.optim.AdamW:foreach=True")
_EPILOG = """\
exit status: 0 everything was measured, 1 there was not enough memory for some shapes, 2 an option is wrong

  gradscale bench {0}
  gradscale bench {0} --shapes llama-60m llama-130m llama-350m --optim_args labels=live --json {0}.json
  gradscale bench {0} --against torch.optim.AdamW:fused=True schedulefree.AdamWScheduleFree sgg_adamw:labels=live"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and return the exit status: 0, 1 where shapes were skipped, 2 for a wrong option."""
    given = sys.argv[2:] if argv is None else argv
    if given[:1] == [bench_quality.COMMAND]:
        return bench_quality.main(given[1:])
    arguments = _parser().parse_args(given)
    try:
        _check_outputs(arguments)
        report, text = bench_control.bench(arguments) if "seeds" in arguments else _bench(arguments)
    except ConfigError as error:
        print(f"gradscale bench {arguments.command}: {error}", file=sys.stderr)
        return _USAGE_ERROR
    print(text)
    return _SKIPPED if report["skipped"] else _OK


def _bench(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    # Here, not above: --help is answered without loading torch.
    import torch

    from gradscale.bench import machine, render
    from gradscale.bench.problem import ShortageError
    from gradscale.training.files import write_json

    device = _device(arguments.device)
    measure, method = _measurement(arguments, getattr(torch, arguments.dtype), device)
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads or before)
    try:
        report: dict[str, Any] = {"machine": machine.describe(device), "method": method, "results": [], "skipped": []}
        for name in dict.fromkeys(arguments.shapes):
            try:
                report["results"].append(measure(WORKLOADS[name]))
            except ShortageError as error:
                report["skipped"].append(str(error))
    finally:
        torch.set_num_threads(before)
    if arguments.json:
        write_json(arguments.json, report)
    if arguments.command == "memory":
        return report, render.memory_text(report)
    if arguments.plot and report["results"]:
        from gradscale.bench.plot import draw

        draw(report, arguments.plot)
    return report, render.step_text(report)


def _measurement(arguments: argparse.Namespace, dtype: Any, device: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return what measures one workload, and what the report says about how."""
    from gradscale.bench import contestants, memory, step

    compared = [contestants.registered(arguments.optim, arguments.optim_args)]
    compared += [contestants.parse(text) for text in arguments.against]
    for contestant in compared:
        contestant.state_bytes(device, dtype)  # says what is wrong before anything large is made
    asked = {"dtype": arguments.dtype, "optim": arguments.optim, "optim_args": arguments.optim_args}
    if arguments.command == "memory":
        return functools.partial(memory.measure, contestants=compared, dtype=dtype, device=device), asked
    method = step.Method(
        dtype=dtype,
        device=device,
        rounds=arguments.repeats,
        steps=arguments.steps,
        interval=arguments.interval,
        groupings=not arguments.only_step,
    )
    asked |= {"rounds": method.rounds, "steps": method.steps, "interval": method.interval}
    asked["groupings"] = method.groupings
    baseline = 1  # the first of --against
    return functools.partial(step.measure, contestants=compared, baseline=baseline, method=method), asked


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse now what would only fail after minutes of measuring."""
    plot: Path | None = getattr(arguments, "plot", None)
    for option, path in (("--json", arguments.json), ("--plot", plot)):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{option} {path}: there is no folder {str(path.parent)!r}")
        if path is not None and path.is_dir():
            raise ConfigError(f"{option} {path}: this is a folder, expected a file")
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {plot}: the ending is not allowed, expected .png, .svg or .pdf")
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'gradscale[plot]'")


def _device(text: str) -> Any:
    import torch

    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {text}: expected cpu, cuda, or cuda:0 and so on")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {text}: torch sees {torch.cuda.device_count()} GPUs")
    return device


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradscale bench",
        description="Measure what an optimizer's step costs on this machine, or how ALSDGC fares, beside others.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="step | memory | clipping | loss-scale | quality"
    )
    step = _command(commands, "step", "time of steps and groupings")
    step.add_argument("--interval", type=_positive, default=500, metavar="T", help="steps between groupings [500]")
    step.add_argument("--steps", type=_positive, default=3, metavar="N", help="of an optimizer in a round [3]")
    step.add_argument("--repeats", type=_several, default=11, metavar="N", help="rounds [11]")
    step.add_argument("--only_step", action="store_true", help="no groupings")
    step.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios (.png, .svg or .pdf)")
    _command(commands, "memory", "memory that is kept, and that steps and groupings take for a moment")
    bench_control.add_parsers(commands)
    commands.add_parser(bench_quality.COMMAND, help=bench_quality.SUMMARY)  # which has a parser of its own
    return parser


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"Measure {summary}. See docs/speed.md.",
        epilog=_EPILOG.format(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    shapes = [shape for shape in WORKLOADS if shape != _HIDDEN]
    parser.add_argument(
        "--shapes", nargs="+", type=_shape, default=["llama-60m", "lora-1b"], metavar="NAME", help=", ".join(shapes)
    )
    parser.add_argument("--optim", default="sgg_adamw", metavar="NAME", help="the optimizer to measure [sgg_adamw]")
    parser.add_argument("--optim_args", metavar="TEXT", help="its options, for example n_clusters=3,labels=live")
    parser.add_argument(
        "--against",
        nargs="+",
        default=list(_AGAINST),
        metavar="CLASS",
        help=f"optimizers to compare with, the first is the baseline: CLASS:option=value,... [{' '.join(_AGAINST)}]",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="[float32]")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda [cpu]")
    parser.add_argument("--threads", type=_positive, metavar="N", help="of torch on the CPU [as torch chooses]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, raw times included")
    return parser


def _shape(text: str) -> str:
    if text not in WORKLOADS:
        raise argparse.ArgumentTypeError(f"{text!r} is unknown{nearest(text, WORKLOADS)}")
    return text


def _positive(text: str) -> int:
    return _at_least(1, text)


def _several(text: str) -> int:
    return _at_least(3, text)  # quartiles of fewer say nothing


def _at_least(least: int, text: str) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {least}")
    return int(text)
