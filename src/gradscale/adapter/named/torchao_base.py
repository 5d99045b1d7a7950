"""AdamW of torchao, which can be told not to compile. Imports torchao."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchao.optim import AdamW4bit, AdamW8bit


class _Plain:
    """Adds the choice.

    Attributes:
        eager: whether the step runs as it is written, and not as compiled code.
    """

    eager = False

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step."""
        step: Any = super().step  # type: ignore[misc]  # that of torchao
        if not self.eager:
            return step(closure)
        with torch.compiler.set_stance("force_eager"):
            return step(closure)


class PlainAdamW8bit(_Plain, AdamW8bit):
    """AdamW8bit."""


class PlainAdamW4bit(_Plain, AdamW4bit):
    """AdamW4bit."""
