"""Two optimizers as one: of hidden matrices, and of all other parameters."""

from __future__ import annotations

from typing import Any


class Together:
    """Steps several optimizers, each with parameters of its own. Not an optimizer: it has what a training loop calls.

    Args:
        optimizers: the optimizers.
    """

    def __init__(self, *optimizers: Any) -> None:
        self._optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all, in order."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """Step all."""
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def train(self) -> None:
        """Let those that keep two sets of weights train."""
        self._switch("train")

    def eval(self) -> None:
        """Let those that keep two sets of weights show the one to evaluate."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        for optimizer in self._optimizers:
            switch = getattr(optimizer, mode, None)
            if callable(switch):
                switch()
