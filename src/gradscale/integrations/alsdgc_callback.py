"""The Trainer callback of ALSDGC. Imports transformers."""

from __future__ import annotations

import logging
import weakref
from typing import Any

from transformers.trainer_callback import TrainerCallback

from gradscale.control import ALSDGC
from gradscale.integrations.alsdgc_deepspeed import DeepSpeedSide, loss_scale_of
from gradscale.integrations.alsdgc_engine import AccelerateSide, Observation
from gradscale.integrations.alsdgc_log import LossWindow, in_words, scalars
from gradscale.integrations.alsdgc_options import parse_alsdgc
from gradscale.options import OptionError

STATE_KEY = "alsdgc"  # not the class's name: the Trainer would make an instance of its own from that
_logger = logging.getLogger("gradscale")


class ALSDGCCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not checked
    """Clips the Trainer's gradients at thresholds of ALSDGC, skips bad steps, and adapts the loss scale of fp16.

    `--alsdgc robust` makes one; in a script, `Trainer(..., callbacks=[ALSDGCCallback("robust")])`. It takes the place
    of `max_grad_norm`. A skipped step leaves optimizer and learning-rate schedule as they are. The controller's state
    is kept in the Trainer's checkpoints; a checkpoint without one is resumed with new statistics.

    With DeepSpeed, which clips inside `backward()`, a threshold or loss scale counts from the next step on.

    Args:
        controller: an `ALSDGC`, whose loss scale is left out if it has none; or "robust" or "faithful", with which one
            is made that also manages the loss scale of fp16 training, beginning from the scaler's own.
        options: of the `ALSDGC` that is made, and `per_group=True` for a threshold per param group.

    Raises:
        OptionError: an option is not allowed, or was given beside a controller.
    """

    def __init__(self, controller: ALSDGC | str = "robust", **options: Any) -> None:
        self._per_group = False
        self._options: dict[str, Any] | None = None
        if isinstance(controller, ALSDGC):
            self._per_group = options.pop("per_group", False)
            if options:
                raise OptionError(f"give {', '.join(options)} to the controller, not beside it")
            self.controller = controller
        else:
            parsed = parse_alsdgc({"mode": controller, **options})
            assert parsed is not None
            self._per_group = parsed.pop("per_group", False)
            self._options = parsed
            self.controller = ALSDGC(**parsed)
        self._initial = self.controller.state_dict()
        self._trainer: Any = None
        self._side: AccelerateSide | DeepSpeedSide | None = None
        self._last: Observation | None = None
        self._losses = LossWindow()
        self._replaced_max_norm: float | None = None
        self._said: set[str] = set()
        self._speaks = True

    def attach(self, trainer: Any) -> None:
        """Remember the Trainer, and go before its other callbacks: trackers get what is added to the logs."""
        self._trainer = weakref.ref(trainer)
        callbacks = trainer.callback_handler.callbacks
        callbacks.remove(self)
        callbacks.insert(0, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over clipping and, with fp16, the loss scale; continue from a checkpoint's statistics.

        Raises:
            RuntimeError: the Trainer is none that gradscale has extended.
            ValueError: the distributed engine is not supported, or a checkpoint's state does not fit.
        """
        trainer = None if self._trainer is None else self._trainer()
        if trainer is None:
            raise RuntimeError("ALSDGCCallback works in a transformers.Trainer only, after `import gradscale`")
        self._put_back(args)
        self._speaks = state.is_world_process_zero
        engine = trainer.accelerator.distributed_type.value
        if engine in ("XLA", "MEGATRON_LM", "TP"):
            raise ValueError(f"ALSDGC does not support the engine {engine}: use one process, DDP, FSDP or DeepSpeed")
        if args.max_grad_norm is None or args.max_grad_norm <= 0:
            # Without a norm to clip at, the Trainer would not come to the place where the controller works.
            self._say(f"max_grad_norm={args.max_grad_norm} asks for no clipping; ALSDGC, being asked for too, clips")
            self._replaced_max_norm, args.max_grad_norm = args.max_grad_norm, 1.0
        deepspeed = engine == "DEEPSPEED"
        if deepspeed and self._per_group:
            raise ValueError("per_group=True is not supported with DeepSpeed, which clips by one norm")
        self._begin_anew(trainer, deepspeed)
        saved = state.stateful_callbacks.get(STATE_KEY) if state.global_step > 0 else None
        if saved is not None:
            self.controller.load_state_dict(saved)
        elif state.global_step > 0:
            self._say(f"the checkpoint of step {state.global_step} has no statistics of ALSDGC: they begin anew")
        if deepspeed:
            self._say("DeepSpeed clips inside backward(): thresholds and loss scales of ALSDGC come one step late")
            self._side = DeepSpeedSide(trainer, self.controller, self._observed, self._say)
        else:
            self._side = AccelerateSide(trainer, self.controller, self._observed, per_group=self._per_group)
        self._side.install()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set what an engine has to know before the step."""
        if self._side is not None:
            self._side.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the controller's state where the Trainer's next checkpoint finds it."""
        state.stateful_callbacks[STATE_KEY] = self.controller.state_dict()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the last step's numbers to training logs, and correct a loss that the Trainer's filter made up."""
        if not logs or any(key.startswith("eval_") for key in logs):
            return
        added = self._losses.honest(logs)
        if "train_runtime" not in logs and self._last is not None:
            added |= scalars(self._last, self.controller.summary())
        logs.update(added)
        # The Trainer has copied `logs` to its history already.
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(added)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the summary, and give back what was taken over."""
        self._put_back(args)
        if state.is_world_process_zero:
            print("\n" + in_words(self.controller.mode, self.controller.summary(), self._last))

    def _begin_anew(self, trainer: Any, deepspeed: bool) -> None:
        """Make the controller as new, with the loss scale that is in use where it is to manage it."""
        self._last, self._losses = None, LossWindow()
        accelerator = trainer.accelerator
        if deepspeed:
            scale = loss_scale_of(accelerator.deepspeed_engine_wrapped.engine.optimizer)
        else:
            scaler = accelerator.scaler
            scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else None
        if self._options is not None:
            options = dict(self._options)
            own = options.pop("loss_scale", None)
            if scale is not None and own is None:
                scale = max(scale, options.get("min_loss_scale", 0.0))
                scale = min(scale, options.get("max_loss_scale") or scale)
            self.controller = ALSDGC(**options, loss_scale=None if scale is None else own or scale)
        else:
            self.controller.load_state_dict(self._initial)
        if scale is None and accelerator.mixed_precision in ("bf16", "fp16"):
            kind = "bf16 needs none" if accelerator.mixed_precision == "bf16" else "there is none that adapts"
            self._say(f"the loss scale is left alone: {kind}")

    def _observed(self, observation: Observation) -> None:
        self._last = observation
        self._losses.add(observation.loss)

    def _put_back(self, args: Any) -> None:
        if self._side is not None:
            self._side.uninstall()
            self._side = None
        if self._replaced_max_norm is not None:
            args.max_grad_norm, self._replaced_max_norm = self._replaced_max_norm, None

    def _say(self, message: str) -> None:
        if self._speaks and message not in self._said:
            self._said.add(message)
            _logger.warning("%s", message)
