"""The norm of each layer's gradient, logged by a Trainer callback. Imports transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import TrainerCallback

from gradscale.amp.gradient_norm import GradientNorm
from gradscale.training.files import finite, write_text
from gradscale.training.lines_file import read_lines
from gradscale.training.output_folder import NORMS

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")


class GradientNormCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not checked
    """Writes the norm of every parameter's gradient to `gradient_norms.jsonl` at the Trainer's logging steps.

    A line holds `step`, `total` (norm of all gradients) and `norms` (name of a parameter to its norm), as the optimizer
    gets them: after clipping, with fp16's loss scale taken out. `gradscale plot` draws them. Between logging steps
    nothing is computed; at one, each gradient is read once. Norms of FSDP's shards are those of whole layers.

    DeepSpeed frees gradients before a callback can see them, and is refused.

    Args:
        folder: of the file; None is the Trainer's `output_dir`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = folder
        self._names: list[str] = []
        self._norm: GradientNorm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines of steps that this run will take (again).

        Raises:
            ValueError: the engine is DeepSpeed.
        """
        refuse_deepspeed(args)
        self._norm = None
        if not state.is_world_process_zero:
            return
        path = self._path(args)
        kept = [line for line in read_lines(path) if line["step"] <= state.global_step]
        if kept:
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        else:
            path.unlink(missing_ok=True)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Write a line if the step that is about to be made will be logged."""
        step = state.global_step + 1
        if not (step % max(1, int(state.logging_steps)) == 0 or (step == 1 and args.logging_first_step)):
            return
        if self._norm is None:
            trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
            self._names = [_plain(name) for name, _ in trained]
            self._norm = GradientNorm([[param] for _, param in trained])
        # All ranks take part: those that hold shards of a layer sum up its squares.
        norms = self._norm.measure()
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None and not args.max_grad_norm:
            norms = norms / scaler.get_scale()  # nobody has unscaled the gradients yet
        if not state.is_world_process_zero:
            return
        line = {
            "step": step,
            "total": float(torch.linalg.vector_norm(norms)),
            "norms": dict(zip(self._names, norms.tolist(), strict=True)),
        }
        path = self._path(args)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(line)) + "\n")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go of the model."""
        self._norm = None

    def _path(self, args: Any) -> Path:
        return Path(args.output_dir if self._folder is None else self._folder) / NORMS


def refuse_deepspeed(args: Any) -> None:
    """Raise ValueError where `TrainingArguments`, or accelerate's launcher, ask for DeepSpeed."""
    if getattr(args, "deepspeed", None) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError(
            "gradient norms per layer cannot be logged with DeepSpeed, which frees gradients inside backward(): leave "
            "out log_gradient_norms or GradientNormCallback"
        )


def _plain(name: str) -> str:
    """Return the name of a parameter without the modules that engines put around others."""
    first, *rest = name.split(".")
    kept = [] if first in _WRAPPERS else [first]
    return ".".join([*kept, *(part for part in rest if part not in _WRAPPERS[:-1])])
