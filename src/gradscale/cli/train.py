"""`gradscale train CONFIG.yaml [--key value ...]`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from itertools import groupby

from gradscale.training.arguments import TrainArguments
from gradscale.training.errors import ConfigError
from gradscale.vision.arguments import StudyArguments

# Of the extra `train`; the optimizers alone need none of them.
_LIBRARIES = ("transformers", "accelerate", "datasets", "tokenizers", "yaml")
_DROPPED_AFTER = 0.2  # seconds in which a thread gets to run on a busy machine
USAGE = "usage: gradscale train CONFIG.yaml [--key value ...]"
IMAGE_CLASSIFICATION = "image-classification"


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the file and the options say and return the exit code: 0, 2 for settings, 130 or 143 for signals."""
    arguments = list(sys.argv[2:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"]) or "--help" in arguments:
        print(study_help_text() if IMAGE_CLASSIFICATION in arguments else help_text())
        return 0
    try:
        if not arguments:
            raise ConfigError(f"CONFIG.yaml is missing\n{USAGE}\nFor example: gradscale train recipes/quickstart.yaml")
        return _train(arguments)
    except KeyboardInterrupt:
        print("\nstopped at once; what has been saved as a checkpoint is there", file=sys.stderr)
        return 128 + signal.SIGINT
    except ConfigError as error:
        return _refuse(error)


def _train(arguments: Sequence[str]) -> int:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} not installed: pip install 'gradscale[train]'")
    # Here, not above: --help and a wrong path are answered without loading torch.
    from gradscale.data.source import DataError
    from gradscale.training.task import read_task

    run = _run_study if read_task(arguments) == IMAGE_CLASSIFICATION else _run_job
    try:
        code = run(arguments)
    except DataError as error:
        return _refuse(error)
    _leave_process_group()
    return code


def _run_job(arguments: Sequence[str]) -> int:
    from gradscale.training.settings import read_command

    settings = read_command(arguments)
    from gradscale.training.job import run_job

    return run_job(settings)


def _run_study(arguments: Sequence[str]) -> int:
    from gradscale.vision.settings import read_study

    settings = read_study(arguments)
    from gradscale.vision.study import run_study

    return run_study(settings)


def _leave_process_group() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # gloo's threads drop the tensors of the last collective some time after it has returned. If that falls into the
        # shutdown of the interpreter, they cannot get the GIL and abort a rank that has finished.
        time.sleep(_DROPPED_AFTER)
        torch.distributed.destroy_process_group()


def _refuse(error: ValueError) -> int:
    if os.environ.get("RANK", "0") == "0":
        print(f"gradscale train: {error}", file=sys.stderr)
    return 2


def help_text() -> str:
    """Return the help: our keys, and where the others are described."""
    lines = [
        USAGE,
        "",
        "Pre-train or fine-tune a causal language model with the transformers Trainer. Keys stand in the YAML file or",
        "on the command line, which wins. Every field of transformers.TrainingArguments is a key (learning_rate,",
        "max_steps, optim, optim_args, eval_strategy, bf16, ...), and these are ours:",
    ]
    lines += _key_lines(TrainArguments)
    lines += [
        "",
        "A file may hold variants of itself, of which --variant NAME takes one, and what --smoke changes for a few",
        "tiny steps on a CPU.",
        "",
        "Continue a run with --resume_from_checkpoint last (or a checkpoint folder). Ctrl-C writes a checkpoint and",
        "stops. Lists: --train_files a.txt b.txt; switches: --bf16, --no_plot; mappings: ",
        "--optim_args '{n_clusters: 2}'. A file with task: image-classification has other keys:",
        "gradscale train --task image-classification --help.",
    ]
    return "\n".join(lines)


def study_help_text() -> str:
    """Return the help of `task: image-classification`."""
    lines = [
        USAGE,
        "",
        "With task: image-classification, compare optimizers on residual networks: the transformers Trainer runs every",
        "model x method x seed. Fields of transformers.TrainingArguments are keys (max_steps, eval_steps, ...), and",
        "these are ours, described in docs/vision.md:",
        *_key_lines(StudyArguments),
        "",
        "Ctrl-C stops orderly; --resume_from_checkpoint last keeps the finished cells and runs the missing ones.",
    ]
    return "\n".join(lines)


def _key_lines(owner: type[TrainArguments] | type[StudyArguments]) -> list[str]:
    """Return one line for each key, under the names of their groups."""
    lines: list[str] = []
    for group, members in groupby(dataclasses.fields(owner), key=lambda field: field.metadata["group"]):
        lines += ["", f"{group}:"]
        for field in members:
            default = (
                ""
                if field.default is None or field.default is dataclasses.MISSING
                else f" [{str(field.default).lower() if field.default is not True else 'true'}]"
            )
            lines.append(f"  {'--' + field.name:<26}{field.metadata['help']}{default}")
    return lines
