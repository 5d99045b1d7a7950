"""The `gradscale` command: choose the subcommand and import nothing else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import cast

from gradscale.options import nearest

SUBCOMMANDS = {
    "run": "gradscale.cli.run:main",
    "train": "gradscale.cli.train:main",
    "sweep": "gradscale.cli.sweep:main",
    "plot": "gradscale.cli.plot:main",
    "doctor": "gradscale.cli.doctor:main",
    "bench": "gradscale.cli.bench:main",
}

HELP = """\
usage: gradscale <command> [...]

  run     run a script, module or command with gradscale's optimizers known to transformers
  train   pre-train or fine-tune a causal language model from a YAML file
  sweep   train a recipe over a grid of settings: a table and a heat map of the losses
  plot    draw loss, scales, clusters and gradient norms of runs, and the heat map of a sweep
  doctor  tell engine, sharding, scaled layers, memory and what is not supported before a run starts
  bench   measure steps, memory, clipping and loss scales beside others'

`gradscale <command> --help` says more. `gradscale --version` prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that `argv` (default: the process's arguments) names and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        from importlib.metadata import version

        print(f"gradscale {version('gradscale')}")
        return 0
    if name not in SUBCOMMANDS:
        print(f"gradscale: unknown command {name!r}{nearest(name, SUBCOMMANDS)}\n\n{HELP}", file=sys.stderr)
        return 2
    module, _, function = SUBCOMMANDS[name].partition(":")
    subcommand = cast(Callable[[list[str]], int], getattr(importlib.import_module(module), function))
    return subcommand(rest)


if __name__ == "__main__":
    sys.exit(main())
