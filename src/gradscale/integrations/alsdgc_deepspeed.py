"""ALSDGC with DeepSpeed, which clips and steps inside `backward()`. Knows its optimizers by their attributes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gradscale.control import ALSDGC
from gradscale.integrations.alsdgc_engine import Losses, Observation
from gradscale.integrations.instance_patches import InstancePatches

Say = Callable[[str], None]


class DeepSpeedSide:
    """DeepSpeed, which clips and steps inside `backward()`: what is decided after a step counts from the next one on.

    Steps whose gradients are not finite are skipped at once, by DeepSpeed itself.

    Args:
        trainer: a Trainer whose engine DeepSpeed has made.
        controller: decides; manages the loss scale if it has one.
        observed: told of every step.
        say: tells the user something, once.
    """

    def __init__(self, trainer: Any, controller: ALSDGC, observed: Callable[[Observation], None], say: Say) -> None:
        self._accelerator = trainer.accelerator
        self._engine = trainer.accelerator.deepspeed_engine_wrapped.engine
        self._optimizer = trainer.optimizer
        self._controller = controller
        self._observed = observed
        self._say = say
        self._losses = Losses()
        self._patches = InstancePatches()
        self._used = math.inf
        self._open = False

    def install(self) -> None:
        """Take over the clip norm and the loss scale of the engine."""
        zero = self._engine.optimizer
        if not hasattr(zero, "clip_grad"):
            self._say(
                "without ZeRO and fp16, DeepSpeed does not skip steps whose gradients are not finite: one bad batch "
                "can still ruin the weights. Use ZeRO stage 1 or higher"
            )
        for name in ("check_grad_overflow", "compute_grad_norm"):
            if hasattr(zero, name):
                setattr(zero, name, True)  # otherwise ZeRO 1 and 2 let NaN gradients of bf16 through to the weights
        scaler = getattr(zero, "loss_scaler", None)
        if scaler is not None and hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False  # the floor is the controller's
        self._patches.replace(self._accelerator, "backward", self._backward(self._accelerator.backward))
        self._patches.replace(self._accelerator, "clip_grad_norm_", self._observe)

    def uninstall(self) -> None:
        """Put back the methods that were replaced. The last clip norm and loss scale stay."""
        self._patches.undo()

    def begin_step(self) -> None:
        """Set the clip norm and the loss scale of the coming step."""
        self._used, self._open = self._controller.threshold, True
        clip = self._used if math.isfinite(self._used) else 0.0  # DeepSpeed's word for no clipping
        if hasattr(self._engine.optimizer, "clip_grad"):
            self._engine.optimizer.clip_grad = clip
        else:
            self._engine._config.gradient_clipping = clip
        if self._controller.loss_scale is not None:
            set_loss_scale(self._engine.optimizer, self._controller.loss_scale)

    def _backward(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def backward_and_watch(loss: Any, **kwargs: Any) -> Any:
            self._losses.add(loss)
            return backward(loss, **kwargs)

        return backward_and_watch

    def _observe(self, parameters: Any = None, max_norm: float = 0.0, norm_type: float = 2.0) -> float | None:
        """Stand in for `Accelerator.clip_grad_norm_`, which with DeepSpeed only asks for the norm: the step is done."""
        norm = self._engine.get_global_grad_norm()
        norm = None if norm is None else float(norm)
        if self._open:
            self._open = False
            overflow = bool(getattr(self._engine.optimizer, "overflow", False))
            loss = self._mean_loss()
            decision = self._controller.observe(
                norm=math.inf if overflow else norm,
                loss=loss,
                found_inf=overflow,
                lr=float(self._optimizer.param_groups[0]["lr"]),
            )
            kept = None if norm is None else 0.0 if overflow else min(norm, self._used)
            self._observed(Observation(norm, loss, self._used, kept, decision, late=True))
        return norm

    def _mean_loss(self) -> float | None:
        loss = self._losses.take()
        if loss is None:
            return None
        if self._accelerator.num_processes > 1:
            loss = self._accelerator.reduce(loss, reduction="mean")
        return float(loss)


def loss_scale_of(optimizer: Any) -> float | None:
    """Return the loss scale of DeepSpeed's optimizer if it adapts it; None if there is none, or a fixed one."""
    config, scaler = getattr(optimizer, "loss_scale_config", None), getattr(optimizer, "loss_scaler", None)
    if config is not None and config.dynamic_loss_scale:
        return float(config.cur_scale)
    return float(scaler.cur_scale) if scaler is not None and scaler.dynamic else None


def set_loss_scale(optimizer: Any, scale: float) -> None:
    """Set the loss scale of DeepSpeed's optimizer."""
    for name in ("loss_scale_config", "loss_scaler"):
        if getattr(optimizer, name, None) is not None:
            getattr(optimizer, name).cur_scale = scale
