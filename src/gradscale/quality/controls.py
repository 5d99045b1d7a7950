"""Controls: is it the grouping, or only the rates that come with it?

A control leaves every scale of a layer in use, and takes away which element has which.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Control:
    """What is done to SGG's groups after every grouping.

    Args:
        kind: "random_labels" shuffles the labels within each layer, so that clusters keep their sizes and scales;
            "permuted_scales" hands the scales of each layer to its clusters in another order.
        seed: of the shuffling.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._kind = kind
        self._generator = torch.Generator().manual_seed(seed)

    def after_grouping(self, optimizer: Optimizer) -> None:
        """Change the state of all layers that have groups."""
        for group in optimizer.param_groups:
            for param in group["params"]:
                state: dict[str, Any] = optimizer.state.get(param, {})
                if "labels" in state and self._kind == "random_labels":
                    _shuffle(state["labels"].view(-1), self._generator)
                elif "scales" in state and self._kind == "permuted_scales":
                    _shuffle(state["scales"], self._generator)


def _shuffle(values: Tensor, generator: torch.Generator) -> None:
    order = torch.randperm(values.numel(), generator=generator)
    values.copy_(values[order.to(values.device)])
