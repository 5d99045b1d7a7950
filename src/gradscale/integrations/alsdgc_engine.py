"""Where the Trainer clips and steps: the controller put in, for accelerate's own loop. Knows accelerate.

The clip is the one place where everything is known in time: the gradients are complete and unscaled, the optimizer has
not stepped. So the controller is asked there, and its threshold is this step's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradscale.amp.clipping import Clipper
from gradscale.amp.grad_scaler import GradScaler
from gradscale.control import ALSDGC, Decision
from gradscale.integrations.instance_patches import InstancePatches


@dataclass(frozen=True)
class Observation:
    """One optimizer step as it was seen.

    Attributes:
        norm: of all gradients before clipping; None where the engine knows none.
        loss: mean over ranks and, with gradient accumulation, over the batches.
        threshold: that the step was clipped at.
        clipped_norm: norm that the optimizer got; 0 of a skipped step, None where the norm is not known.
        decision: of the controller. Its threshold may come too late for this step (see `threshold`).
        late: whether it did, as with DeepSpeed.
    """

    norm: float | None
    loss: float | None
    threshold: float
    clipped_norm: float | None
    decision: Decision
    late: bool = False


class Losses:
    """Sums the losses of one optimizer step, on the device."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, loss: Any, share: float = 1.0) -> None:
        """Add a loss, or the mean of several."""
        if isinstance(loss, Tensor) and loss.numel():
            mean = loss.detach().float().mean() * share
            self._sum = mean if self._sum is None else self._sum + mean

    def take(self) -> Tensor | None:
        """Return the sum and begin anew."""
        taken, self._sum = self._sum, None
        return taken


class AccelerateSide:
    """Single process, DDP and FSDP, in full precision, bf16 or fp16.

    Args:
        trainer: a Trainer whose model and optimizer accelerate has prepared.
        controller: decides; manages the loss scale if it has one.
        observed: told of every step.
        per_group: a threshold for each param group.
    """

    def __init__(
        self, trainer: Any, controller: ALSDGC, observed: Callable[[Observation], None], *, per_group: bool
    ) -> None:
        self._accelerator = trainer.accelerator
        self._optimizer = trainer.optimizer
        self._trainer = trainer
        self._observed = observed
        self._per_group = per_group
        self._clipper = Clipper(controller, controller.norm_type, per_group=per_group)
        self._losses = Losses()
        self._pending: Decision | None = None  # about the step under way
        self._patches = InstancePatches()
        self._scaler: GradScaler | None = None

    def install(self) -> None:
        """Put the controller where the Trainer clips, scales and steps."""
        accelerator, patches = self._accelerator, self._patches
        controller = self._clipper.controller
        if accelerator.scaler is not None and controller.loss_scale is not None:
            # What the ranks decide is reduced together with the norm, so the scaler reduces nothing.
            device = accelerator.scaler._device
            self._scaler = GradScaler(device, controller=controller, process_group=False)
            patches.replace(accelerator, "scaler", self._scaler)
        patches.replace(accelerator, "backward", self._backward(accelerator.backward))
        patches.replace(accelerator, "clip_grad_norm_", self._clip)
        if hasattr(self._trainer, "_mixed_mesh_grad_norm"):
            patches.replace(
                self._trainer, "_mixed_mesh_grad_norm", lambda model, max_norm: self._clip(model.parameters(), max_norm)
            )
        for optimizer in accelerator._optimizers:
            if self._scaler is not None:
                patches.replace(optimizer, "scaler", self._scaler)
            patches.replace(optimizer, "step", self._step(optimizer, optimizer.step))

    def uninstall(self) -> None:
        """Put back what was there."""
        self._patches.undo()

    def begin_step(self) -> None:
        """Nothing is decided before the step here."""

    def _backward(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def backward_and_watch(loss: Any, **kwargs: Any) -> Any:
            self._losses.add(loss, 1.0 / self._accelerator.gradient_accumulation_steps)
            return backward(loss, **kwargs)

        return backward_and_watch

    def _clip(self, parameters: Iterable[Tensor], max_norm: float = 0.0, norm_type: float = 2.0) -> Tensor:
        """Stand in for `Accelerator.clip_grad_norm_`; the threshold is the controller's, whatever `max_norm` is."""
        if self._pending is None:
            self._decide([param for param in parameters if param.requires_grad])
        return torch.tensor(self._clipper.norm)

    def _decide(self, params: list[Tensor]) -> None:
        clipper, scaler = self._clipper, self._scaler
        if self._accelerator.scaler is not None:
            self._accelerator.unscale_gradients()
        groups = self._optimizer.param_groups
        decision = clipper.clip_(
            [group["params"] for group in groups] if self._per_group else [params],
            loss=self._losses.take(),
            found_inf=None if scaler is None else scaler.found_inf(),
            lr=float(groups[0]["lr"]),
        )
        if scaler is not None:
            scaler.follow(decision)
        self._pending = decision
        one_threshold = decision.group_thresholds is None
        kept = clipper.clipped_norm(decision) if one_threshold or decision.skip else None
        self._observed(Observation(clipper.norm, clipper.loss, decision.threshold, kept, decision))

    def _step(self, optimizer: Any, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)  # with the mark by which torch's schedulers know that they count its calls
        def step_unless_skipped(closure: Any = None) -> None:
            if not self._accelerator.gradient_state.sync_gradients:
                return
            decision, self._pending = self._pending, None
            if decision is not None and decision.skip:
                if optimizer.scaler is not None:
                    optimizer.scaler.update()
                # Read by accelerate's and the Trainer's schedulers, which then do not advance.
                optimizer._is_overflow = True
                return
            step() if closure is None else step(closure)
            if optimizer.scaler is None:
                optimizer._is_overflow = False

        return step_unless_skipped
