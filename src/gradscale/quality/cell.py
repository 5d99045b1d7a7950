"""One training: an optimizer, a learning rate, a seed. Everything else is the same for all cells of a study."""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradscale.quality.controls import Control
from gradscale.quality.optimizers import make_optimizer, rate_at
from gradscale.quality.study import Arm, Study
from gradscale.training.arguments import TrainArguments

DIVERGED_ABOVE = 1.0  # nats above the first training loss
_DIVERGED_FOR = 10  # steps, one after the other: single batches may be far above what a model knows
_EVAL_BATCH = 32


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        arm: its name.
        lr: learning rate.
        seed: of the initial weights and of the order of the data.
        multipliers: of each layer's rate, where the arm takes them from another one.
    """

    arm: str
    lr: float
    seed: int
    multipliers: tuple[tuple[str, float], ...] = ()

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.arm} lr={self.lr:g} seed={self.seed}"


def train(study: Study, cell: Cell, device: str = "cpu") -> dict[str, Any]:
    """Train a cell from its beginning, and return what came of it.

    Returns:
        `status` ("finished" or "diverged"), `validation_loss` (nats per token; None where it diverged), `curve` (step,
        seconds of training so far, validation loss), `train_loss` (step, mean since the last), `groupings` (step, and
        for each layer its scales and how many elements have each), `seconds`.
    """
    arm = study.arms[cell.arm]
    blocks, tokenizer = _data(_hashable(study.task))
    torch.manual_seed(cell.seed)
    model = _with_lora(_model(study.task, tokenizer), arm).to(device)
    optimizer, factors = make_optimizer(arm, cell.lr, model, dict(cell.multipliers))
    control = None if arm.control is None else Control(arm.control, cell.seed)
    run = _Run(arm, model, optimizer, device)
    schedule, report = arm.schedule, None
    batches = _batches(blocks.train, schedule.batch_size, cell.seed)
    if schedule.compile:
        run.compile(next(_batches(blocks.train, schedule.batch_size, cell.seed)))
    losses: list[float] = []
    latest_losses: deque[float] = deque(maxlen=_DIVERGED_FOR)
    first = math.inf
    for step in range(schedule.steps):
        began = time.perf_counter()
        rate = cell.lr * rate_at(step, schedule)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        losses.append(run.step(next(batches)))
        run.seconds += time.perf_counter() - began
        latest_losses.append(losses[-1])
        first = losses[0] if step == 0 else first
        lost = len(latest_losses) == _DIVERGED_FOR and min(latest_losses) > first + DIVERGED_ABOVE
        if lost or not math.isfinite(losses[-1]):
            return run.result("diverged")
        latest = getattr(optimizer, "grouping_report", None)
        if latest is not None and latest is not report:
            report = latest
            run.note_grouping(step + 1, latest)
            if control is not None:
                control.after_grouping(optimizer)
        if (step + 1) % schedule.eval_every == 0 or step + 1 == schedule.steps:
            run.train_loss.append((step + 1, sum(losses) / len(losses)))
            losses = [losses[-1]]
            run.curve.append((step + 1, run.seconds, run.validation_loss(blocks.validation)))
            if not math.isfinite(run.curve[-1][-1]):
                return run.result("diverged")
    return run.result("diverged" if run.curve[-1][-1] > first + DIVERGED_ABOVE else "finished")


class _Run:
    def __init__(self, arm: Arm, model: Any, optimizer: Any, device: str) -> None:
        self._arm, self._model, self._optimizer, self._device = arm, model, optimizer, device
        self._called = _compiled(model, device) if arm.schedule.compile else model
        self.seconds = 0.0
        self._now = ""
        self.curve: list[tuple[int, float, float]] = []
        self.train_loss: list[tuple[int, float]] = []
        self._groupings: list[tuple[int, dict[str, Any]]] = []

    def compile(self, ids: Tensor) -> None:
        """Have the code for a step made, whose time is not that of any step; nothing of the run changes."""
        with torch.random.fork_rng(devices=[] if self._device == "cpu" else None):
            self._mode("train")
            self._backward(ids)
            self._optimizer.zero_grad()

    def step(self, ids: Tensor) -> float:
        self._mode("train")
        total = self._backward(ids)
        if self._arm.schedule.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._arm.schedule.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def _backward(self, ids: Tensor) -> float:
        total = 0.0
        for part in torch.split(ids, self._arm.schedule.micro_batch_size or len(ids)):
            loss = self._loss(part) * (len(part) / len(ids))
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            total += float(loss.detach())
        return total

    def validation_loss(self, blocks: Any) -> float:
        self._mode("eval")
        total = 0.0
        with torch.no_grad():
            for begin in range(0, len(blocks), _EVAL_BATCH):
                ids = _stack(blocks, range(begin, min(begin + _EVAL_BATCH, len(blocks))))
                total += float(self._loss(ids)) * len(ids)
        return total / len(blocks)

    def note_grouping(self, step: int, report: Any) -> None:
        layers = {layer.name: [list(layer.scales), list(layer.counts)] for layer in report.layers}
        self._groupings.append((step, layers))

    def result(self, status: str) -> dict[str, Any]:
        return {
            "status": status,
            "validation_loss": self.curve[-1][-1] if status == "finished" else None,
            "curve": self.curve,
            "train_loss": self.train_loss,
            "groupings": self._groupings,
            "seconds": self.seconds,
        }

    def _loss(self, ids: Tensor) -> Tensor:
        ids = ids.to(self._device)
        half = self._arm.schedule.precision == "bfloat16"
        with torch.autocast(torch.device(self._device).type, torch.bfloat16, enabled=half):
            loss: Tensor = self._called(input_ids=ids, labels=ids).loss
        return loss

    def _mode(self, name: str) -> None:
        if name == self._now:
            return
        self._now = name
        getattr(self._model, name)()
        switch = getattr(self._optimizer, name, None)  # schedule-free optimizers keep two sets of weights
        if callable(switch):
            switch()


def mean_scales(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean scale of each layer, over its elements and over the groupings of a run."""
    sums: dict[str, list[float]] = {}
    for _, layers in result["groupings"]:
        for name, (scales, counts) in layers.items():
            mean = sum(scale * count for scale, count in zip(scales, counts, strict=True)) / max(1, sum(counts))
            sums.setdefault(name, []).append(mean)
    return {name: sum(means) / len(means) for name, means in sums.items()}


def load_data(study: Study) -> int:
    """Prepare the data, which are read from a cache from then on, and return the number of tokens in the vocabulary.

    Raises:
        ConfigError, DataError: model or data cannot be used; or nothing is held out.
    """
    from gradscale.training.errors import ConfigError

    blocks, tokenizer = _data(_hashable(study.task))
    if blocks.validation is None or not len(blocks.validation):
        raise ConfigError("no data are held out: give validation_files, or validation_fraction above 0")
    _model(study.task, tokenizer)
    return len(tokenizer)


def _model(task: TrainArguments, tokenizer: Any) -> Any:
    from gradscale.training.model import build_model

    return build_model(task, tokenizer)


def _compiled(model: Any, device: str) -> Any:
    """Return the model as code from torch.compile, for batches of few sizes."""
    if device == "cpu":
        # Written out, attention is part of the generated code; the backward pass of torch's own, for CPUs and
        # bfloat16, takes as long as all the rest of a small model.
        model.set_attn_implementation("eager")
    # Code for the models of earlier cells would count towards the limit on versions of a function.
    torch.compiler.reset()
    return torch.compile(model, dynamic=False)


def _with_lora(model: Any, arm: Arm) -> Any:
    """Return the model with LoRA's matrices on it, which then are all that is trained.

    Raises:
        ConfigError: PEFT is missing, or matches nothing.
    """
    from gradscale.training.errors import ConfigError

    if arm.lora is None:
        return model
    try:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **arm.lora))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{arm.name}: lora: {error}") from None


@functools.lru_cache(maxsize=1)
def _data(task: str) -> tuple[Any, Any]:
    import json

    from gradscale.training.datasets import load_blocks, open_source
    from gradscale.training.model import load_tokenizer

    arguments = TrainArguments(**json.loads(task))
    source = open_source(arguments)
    tokenizer = load_tokenizer(arguments, source)
    return load_blocks(arguments, source, tokenizer), tokenizer


def _hashable(task: TrainArguments) -> str:
    import dataclasses
    import json

    return json.dumps(dataclasses.asdict(task), sort_keys=True)


def _batches(blocks: Any, size: int, seed: int) -> Iterator[Tensor]:
    """Yield int64 `[size, block_size]` for ever; each epoch in an order of its own, the same for all optimizers."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(blocks))
    while True:
        order = torch.randperm(len(blocks), generator=generator).tolist()
        for begin in range(0, len(order) - size + 1, size):
            yield _stack(blocks, order[begin : begin + size])


def _stack(blocks: Any, places: Any) -> Tensor:
    return torch.stack([blocks[place]["input_ids"] for place in places])
