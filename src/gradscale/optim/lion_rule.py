"""Lion as a base rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.bases.adam import Number
from gradscale.bases.lion import LionFactors, lion_direction, lion_momentum
from gradscale.optim.adam_rule import moment_slots
from gradscale.optim.rule import Group, Plan, Slot
from gradscale.option_tables import LION
from gradscale.options import Option


@dataclass(frozen=True)
class LionRule:
    """Lion (Chen et al., arXiv 2302.06675, Algorithm 2), with decoupled weight decay.

    What is grouped is the momentum, today's gradient included, as with every other base; the direction is that of the
    momentum before it.
    """

    decoupled_weight_decay: bool = True
    momentum: str = "exp_avg"
    takes_trust_ratio: bool = False
    counts_steps: bool = False
    adapts_updates: bool = False
    direction_first: bool = True

    @property
    def options(self) -> Mapping[str, Option]:
        """Those of Lion."""
        return LION

    def check(self, group: Group) -> None:
        """All combinations are allowed."""

    def adapts(self, shape: torch.Size, group: Group) -> bool:
        """No layer has a trust ratio."""
        return False

    def direction_reads_gradient(self, group: Group) -> bool:
        """It mixes gradient and momentum."""
        return True

    def trust_ratios(
        self, weight_squares: Tensor, grad_squares: Tensor, shapes: Sequence[torch.Size], groups: Sequence[Group]
    ) -> Tensor:
        """There are none."""
        raise NotImplementedError

    def slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        """The momentum."""
        return moment_slots(param, group, [self.momentum])

    def plan(self, group: Group) -> Plan:
        """Nothing changes the computation."""
        return None

    def constants(self, group: Group, step: float) -> tuple[float, tuple[float, ...]]:
        """See `LionFactors`."""
        beta1, beta2 = group["betas"]
        return 1.0, (1 - beta1, 1 - beta2)

    def accumulate(self, grad: Tensor, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan) -> None:
        """See `lion_momentum`."""
        lion_momentum(grad, state[self.momentum], LionFactors(*constants))

    def direction(
        self, grad: Tensor | None, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan
    ) -> Tensor:
        """See `lion_direction`."""
        assert grad is not None
        return lion_direction(grad, state[self.momentum], LionFactors(*constants))
