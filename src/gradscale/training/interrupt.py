"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, stop; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch
from transformers import TrainerCallback

# torchrun passes on a Ctrl-C that the terminal has already sent to its children.
_ECHO_SECONDS = 2.0


class Interrupt(TrainerCallback):
    """Trainer callback and context manager that turns the first signal into a checkpoint and an orderly stop.

    Attributes:
        signal: the signal that stopped the training, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._received: int | None = None
        self._received_at = 0.0
        self._distributed = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # Python delivers signals to the main thread only, and refuses handlers elsewhere.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._received_at = number, time.monotonic()
            # os.write-like directness is not needed: nothing else writes to stderr from a handler.
            print("\nfinishing the step and writing a checkpoint (Ctrl-C again stops at once)", file=sys.stderr)
        elif number == signal.SIGINT:
            if not self._distributed or time.monotonic() - self._received_at > _ECHO_SECONDS:
                raise KeyboardInterrupt

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Learn whether other processes have to agree."""
        self._distributed = args.world_size > 1 and torch.distributed.is_initialized()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the step that a signal arrived in: save and stop, without evaluating first."""
        if self._stop(args.device):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop also after an evaluation, which runs between two steps."""
        if state.global_step > 0 and self._stop(args.device):
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave out what is due at the end of an epoch: this one has not ended."""
        if self.signal is not None:
            control.should_save = control.should_evaluate = False

    def _stop(self, device: torch.device) -> bool:
        """Whether any process was asked to stop: all stop after the same step."""
        received = self._received or 0
        if self._distributed:
            flag = torch.tensor(received, device=device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            received = int(flag.item())
        if received:
            self.signal = received
        return bool(received)
