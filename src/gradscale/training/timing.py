"""Where the time of a step goes: training steps, and the optimizer's share of them."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import TrainerCallback

# Left out of the rates: compilation and the first allocations say nothing about a long run.
WARM_UP_STEPS = 3


class StepTimer(TrainerCallback):
    """Trainer callback that times optimizer steps and everything between the begin and the end of a training step.

    Evaluation, checkpoints and logging lie outside. Seconds; steps after the warm-up only.

    Attributes:
        began: whether the training loop was reached.
        steps: number of timed steps.
        step_seconds: time of those steps, from the first forward pass to the end of the optimizer's step.
        optimizer_seconds: time within `Optimizer.step()` in those steps.
    """

    def __init__(self) -> None:
        self.began = False
        self.steps = 0
        self.step_seconds = 0.0
        self.optimizer_seconds = 0.0
        self._seen = 0
        self._begin = 0.0
        self._optimizer_begin = 0.0
        self._in_optimizer = 0.0
        self._device = torch.device("cpu")
        self._hooks: list[Any] = []

    @property
    def optimizer_share(self) -> float | None:
        """The optimizer's part of the step time, in [0, 1]; None before anything was timed."""
        return self.optimizer_seconds / self.step_seconds if self.step_seconds and self._seen else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hook the optimizer that does the work, below the wrappers of accelerate."""
        self.began, self._device = True, args.device
        optimizer = inner_optimizer(kwargs.get("optimizer"))
        if optimizer is not None:
            self._hooks = [
                optimizer.register_step_pre_hook(lambda *_: self._optimizer_starts()),
                optimizer.register_step_post_hook(lambda *_: self._optimizer_ends()),
            ]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of a step."""
        self._begin, self._in_optimizer = self._now(), 0.0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock of a step, before anything is logged or saved."""
        elapsed = self._now() - self._begin
        self._seen += 1
        if self._seen > WARM_UP_STEPS:
            self.steps += 1
            self.step_seconds += elapsed
            self.optimizer_seconds += self._in_optimizer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the hooks away again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _optimizer_starts(self) -> None:
        self._optimizer_begin = self._now()

    def _optimizer_ends(self) -> None:
        self._in_optimizer += self._now() - self._optimizer_begin

    def _now(self) -> float:
        # CUDA runs behind: without waiting, the time of the kernels would be booked where the next wait happens.
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def inner_optimizer(optimizer: Any) -> Optimizer | None:
    """Return the torch optimizer below the wrappers (`.optimizer`) of accelerate, DeepSpeed and others, or None."""
    inner = None
    while optimizer is not None:
        inner, optimizer = optimizer, getattr(optimizer, "optimizer", None)
    return inner if isinstance(inner, Optimizer) else None


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of all tensors in the optimizer's state, each storage counted once."""
    storages: dict[tuple[torch.device, int], int] = {}
    pending: list[Any] = list(optimizer.state.values())
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            local = item.to_local() if hasattr(item, "to_local") else item
            storage = local.untyped_storage()
            storages[(local.device, storage.data_ptr())] = storage.nbytes()
        elif isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, (list, tuple)):
            pending += item
    return sum(storages.values())
