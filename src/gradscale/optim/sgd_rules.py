"""SGD with momentum, and LARS on it, as base rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.bases.adam import Number
from gradscale.bases.lars import lars_momentum, lars_trust_ratio
from gradscale.bases.sgd import SGDFactors, sgd_direction, sgd_factors, sgd_momentum
from gradscale.optim.rule import Group, Plan, Slot
from gradscale.option_checks import check_sgd
from gradscale.option_tables import LARS, SGD
from gradscale.options import Option


def _buffer(param: Tensor) -> Slot:
    # As for Adam's moments: float16 has too little range for what sums up.
    dtype = torch.float32 if param.dtype == torch.float16 else param.dtype
    return Slot(dtype, param.shape, lowest=-math.inf, may_be_nan=True)


@dataclass(frozen=True)
class SGDRule:
    """SGD with momentum, dampening and Nesterov's momentum, as `torch.optim.SGD` (weight decay enters the gradient)."""

    decoupled_weight_decay: bool = False
    momentum: str = "momentum_buffer"
    takes_trust_ratio: bool = False
    counts_steps: bool = False
    adapts_updates: bool = False
    direction_first: bool = False

    @property
    def options(self) -> Mapping[str, Option]:
        """Those of SGD."""
        return SGD

    def check(self, group: Group) -> None:
        """See `check_sgd`."""
        check_sgd(group)

    def slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        """The momentum buffer, if there is momentum."""
        return {self.momentum: _buffer(param)} if group["momentum"] != 0 else {}

    def plan(self, group: Group) -> Plan:
        """Whether there is momentum, and whether it looks ahead."""
        return group["momentum"] != 0, group["nesterov"]

    def constants(self, group: Group, step: float) -> tuple[float, tuple[float, ...]]:
        """See `sgd_factors`."""
        return 1.0, tuple(map(float, sgd_factors(step, momentum=group["momentum"], dampening=group["dampening"])))

    def adapts(self, shape: torch.Size, group: Group) -> bool:
        """No layer has a trust ratio."""
        return False

    def direction_reads_gradient(self, group: Group) -> bool:
        """Nesterov's momentum adds it, and without momentum it is the direction."""
        return bool(group["momentum"] == 0 or group["nesterov"])

    def trust_ratios(
        self, weight_squares: Tensor, grad_squares: Tensor, shapes: Sequence[torch.Size], groups: Sequence[Group]
    ) -> Tensor:
        """There are none."""
        raise NotImplementedError

    def accumulate(self, grad: Tensor, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan) -> None:
        """See `sgd_momentum`."""
        has_momentum, _ = _pair(plan)
        if has_momentum:
            sgd_momentum(grad, state[self.momentum], SGDFactors(*constants))

    def direction(
        self, grad: Tensor | None, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan
    ) -> Tensor:
        """See `sgd_direction`; without momentum the gradient."""
        has_momentum, nesterov = _pair(plan)
        if not has_momentum:
            assert grad is not None
            return grad.clone()
        return sgd_direction(grad, state[self.momentum], SGDFactors(*constants), nesterov=nesterov)


@dataclass(frozen=True)
class LARSRule:
    """LARS (You et al., arXiv 1708.03888, Algorithm 1), with the learning rate outside of the momentum as in torch."""

    decoupled_weight_decay: bool = False
    momentum: str = "momentum_buffer"
    takes_trust_ratio: bool = True
    counts_steps: bool = False
    adapts_updates: bool = False
    direction_first: bool = False

    @property
    def options(self) -> Mapping[str, Option]:
        """Those of LARS."""
        return LARS

    def check(self, group: Group) -> None:
        """All combinations are allowed."""

    def slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        """The momentum buffer."""
        return {self.momentum: _buffer(param)}

    def plan(self, group: Group) -> Plan:
        """Nothing changes the computation."""
        return None

    def constants(self, group: Group, step: float) -> tuple[float, tuple[float, ...]]:
        """The momentum."""
        return 1.0, (float(group["momentum"]),)

    def adapts(self, shape: torch.Size, group: Group) -> bool:
        """Its trust ratio is that of the gradient, not of the update."""
        return False

    def direction_reads_gradient(self, group: Group) -> bool:
        """It reads the momentum buffer."""
        return False

    def trust_ratios(
        self, weight_squares: Tensor, grad_squares: Tensor, shapes: Sequence[torch.Size], groups: Sequence[Group]
    ) -> Tensor:
        """See `lars_trust_ratio`; 1 for vectors and scalars, as LARS is used on biases and normalization layers."""
        numbers = [(g["trust_coefficient"], g["weight_decay"], len(s)) for g, s in zip(groups, shapes, strict=True)]
        columns = torch.tensor(numbers, dtype=torch.float64).to(grad_squares.device, non_blocking=True)
        coefficient, weight_decay, dimensions = columns.unbind(1)
        ratios = lars_trust_ratio(
            weight_squares, grad_squares, trust_coefficient=coefficient, weight_decay=weight_decay, eps=0.0
        )
        # float32 holds no ratio to a gradient of less than 1e-38 times the weights: inf times it would be NaN.
        return torch.where(dimensions < 2, 1.0, ratios.clamp(max=torch.finfo(torch.float32).max))

    def accumulate(self, grad: Tensor, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan) -> None:
        """See `lars_momentum`; the trust ratio comes after the momentum in `constants`."""
        momentum, ratio = constants
        lars_momentum(grad, state[self.momentum], ratio=ratio, momentum=momentum)

    def direction(
        self, grad: Tensor | None, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan
    ) -> Tensor:
        """The momentum buffer."""
        return state[self.momentum].clone()


def _pair(plan: Plan) -> tuple[bool, bool]:
    assert isinstance(plan, tuple)
    first, second = plan
    return bool(first), bool(second)
