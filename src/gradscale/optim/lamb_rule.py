"""LAMB as a base rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.bases.adam import AdamFactors, Number, adam_direction, adam_factors, adam_moments
from gradscale.bases.lamb import lamb_trust_ratio
from gradscale.optim.adam_rule import moment_slots
from gradscale.optim.rule import Group, Plan, Slot
from gradscale.option_tables import LAMB
from gradscale.options import Option


@dataclass(frozen=True)
class LAMBRule:
    """LAMB (You et al., arXiv 1904.00962, Algorithm 2) with bias correction and decoupled weight decay.

    Vectors and scalars have a ratio of 1 (as in the authors' own training of BERT, which leaves out biases and
    normalization layers) unless `adapt_vectors` is set.
    """

    decoupled_weight_decay: bool = True
    momentum: str = "exp_avg"
    takes_trust_ratio: bool = False
    counts_steps: bool = True
    adapts_updates: bool = True
    direction_first: bool = False

    @property
    def options(self) -> Mapping[str, Option]:
        """Those of LAMB."""
        return LAMB

    def check(self, group: Group) -> None:
        """All combinations are allowed."""

    def adapts(self, shape: torch.Size, group: Group) -> bool:
        """Whatever scales it, or does not."""
        return math.prod(shape) > 0 and (len(shape) >= 2 or bool(group["adapt_vectors"]))

    def direction_reads_gradient(self, group: Group) -> bool:
        """It reads the moments."""
        return False

    def trust_ratios(
        self, weight_squares: Tensor, grad_squares: Tensor, shapes: Sequence[torch.Size], groups: Sequence[Group]
    ) -> Tensor:
        """See `lamb_trust_ratio`; at most 1 where `trust_clip` is set."""
        largest = [1.0 if group["trust_clip"] else torch.finfo(torch.float32).max for group in groups]
        bounds = torch.tensor(largest, dtype=torch.float64).to(grad_squares.device, non_blocking=True)
        # float32 holds no ratio to an update of less than 1e-38 times the weights: inf times it would be NaN.
        return torch.minimum(lamb_trust_ratio(weight_squares, grad_squares), bounds)

    def slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        """Both moments."""
        return moment_slots(param, group, ["exp_avg", "exp_avg_sq"])

    def plan(self, group: Group) -> Plan:
        """Nothing changes the computation."""
        return None

    def constants(self, group: Group, step: float) -> tuple[float, tuple[float, ...]]:
        """See `adam_factors`."""
        rate, factors = adam_factors(step, betas=group["betas"], eps=group["eps"])
        return rate, tuple(map(float, factors))

    def accumulate(self, grad: Tensor, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan) -> None:
        """See `adam_moments`."""
        adam_moments(grad, state["exp_avg"], state["exp_avg_sq"], AdamFactors(*constants))

    def direction(
        self, grad: Tensor | None, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan
    ) -> Tensor:
        """See `adam_direction`."""
        return adam_direction(state["exp_avg"], state["exp_avg_sq"], AdamFactors(*constants))
