"""DGS as a scaler: what it has to know of all gradients of a step, and what the state holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from gradscale.bases.adam import Number
from gradscale.optim.report import GroupingReport
from gradscale.optim.rule import Group, Layer, Plan, Slot, State
from gradscale.option_checks import check_dgs
from gradscale.option_tables import DGS, DGS_ON_ADAM
from gradscale.options import Option
from gradscale.scalers.dgs import (
    Form,
    collective_importance,
    dgs_factor,
    spikes,
    take_importance,
    take_level,
    take_weight,
)

IMPORTANCE, HISTORY = "importance", "importance_history"
# Columns of the history of a layer: W, the running mean of its importance times W, and of the whole model's mean
# importance the level that spikes are compared with and its weight (see `gradscale.scalers.dgs`).
_HISTORY = 4
_LARGEST = torch.finfo(torch.float32).max


class DGSPlan(NamedTuple):
    """What is computed: the form (None: the factor is 1), and whether importance is a running mean."""

    form: Form | None
    averages: bool


@dataclass(frozen=True)
class DGSScaler:
    """See `gradscale.scalers.dgs`.

    Attributes:
        history: state key of what is kept of each layer.
        on_adam: whether the base has an `eps` of its own, so that this one's is `importance_eps`.
    """

    on_adam: bool = False
    history: str = HISTORY

    @property
    def options(self) -> Mapping[str, Option]:
        """Those of DGS."""
        return DGS_ON_ADAM if self.on_adam else DGS

    def check(self, group: Group) -> None:
        """See `check_dgs`."""
        check_dgs(group)

    def scales(self, shape: torch.Size, group: Group) -> bool:
        """Every parameter that is there takes part, if only in the sum over all."""
        return math.prod(shape) > 0

    def slots(self, shape: torch.Size, layers: int | None, group: Group) -> dict[str, Slot]:
        """The running importance of each element, if that is asked for, and what a layer's needs besides."""
        if group["importance_decay"] == 0:
            return {}
        history = torch.Size([_HISTORY] if layers is None else [layers, _HISTORY])
        if shape == history:
            # By its shape the rest of the optimizer, and engines, would take it for a number per element.
            history = torch.Size([1, *history])
        return {
            IMPORTANCE: Slot(torch.float32, shape, lowest=0.0, may_be_nan=True),
            HISTORY: Slot(torch.float32, history, lowest=0.0, may_be_nan=True),
        }

    def due(self, clock: int, group: Group) -> bool:
        """Nothing is grouped."""
        return False

    def overdue(self, state: State, group: Group) -> bool:
        """Nothing is grouped."""
        return False

    def observe(self, layers: list[Layer], clock: int) -> GroupingReport | None:
        """Nothing is grouped."""
        raise NotImplementedError

    def keeps_labels(self, group: Group) -> bool:
        """Nothing is grouped."""
        return False

    def relabel(self, momentum: Tensor, state: Mapping[str, Tensor], dtype: torch.dtype, plan: Plan) -> None:
        """Nothing is grouped."""
        raise NotImplementedError

    def warn(self, report: GroupingReport) -> None:
        """Nothing is grouped."""

    def plan(self, group: Group) -> DGSPlan:
        """The form; parameters with `scaled=False` are counted in the sum, and stepped by their base."""
        return DGSPlan(group["form"] if group["scaled"] else None, group["importance_decay"] > 0)

    def constants(self, group: Group) -> tuple[float, ...]:
        """Return beta, eps, the bounds and rho."""
        return (group["beta"], self._eps(group), *group["factor_bounds"], group["importance_decay"])

    def reads_gradients(self, group: Group) -> Literal["no", "together", "by layer"]:
        """Which sums the form needs, and the running mean."""
        if group["importance_decay"] > 0 or (group["scaled"] and group["form"] == "normalized"):
            return "by layer"
        return "together" if group["scaled"] and group["form"] != "importance" else "no"

    def numbers_of_all(self, total: Tensor, groups: list[Group]) -> Tensor:
        """G; no mean; and what a gradient weighs that is no running mean."""
        sigma = _column([group["sigma"] for group in groups], total)
        collective = cast(Tensor, collective_importance(total, sigma))
        ones = torch.ones_like(collective)
        return torch.stack([collective, torch.zeros_like(ones), ones, ones], dim=1)

    def numbers_by_layer(
        self, sums: Tensor, numel: Tensor, gammas: Tensor, histories: Tensor | None, groups: list[Group], clock: int
    ) -> tuple[Tensor, Tensor | None]:
        """G, M, W and how much the past weighs, with the running means moved on.

        The sum over a layer of its running mean is kept as a number, and not summed anew: it follows the same rule.
        A layer without a gradient has a `numel` of 0. It counts nothing, and its running mean stays what it was.
        """
        here = numel > 0
        mean = sums / numel.clamp(min=1)
        if histories is None:
            numbers = self.numbers_of_all((gammas * sums).sum(), groups)
            numbers[:, 1] = mean
            return numbers, None
        weight, running, level, level_weight = histories.unbind(1)
        # The level is the model's: a layer that has its first gradient now takes it over from those before it.
        longest = level_weight.argmax()
        level = torch.where(level_weight < level_weight[longest], level[longest], level)
        level_weight = level_weight[longest].expand_as(level_weight)
        decay = _column([group["importance_decay"] for group in groups], mean)
        kept = _column([group["reset_decay"] if group["reset"] == "soft" else 0.0 for group in groups], mean)
        every = _column([float(bool(g["reset_every"]) and clock % g["reset_every"] == 0) for g in groups], mean)
        # Where spikes are not looked for, nothing is above the threshold.
        threshold = _column([group["reset_spike"] or _LARGEST for group in groups], mean)
        of_model = (sums.sum() / numel.sum()).expand_as(level)
        keep = torch.where(spikes(of_model, level, level_weight, threshold) | (every > 0), kept, torch.ones_like(kept))
        # Where decay is 0, W becomes 1 and the running mean today's.
        new_weight = cast(Tensor, take_weight(weight, cast(Number, decay), keep))
        new_running = decay * keep * running + (1 - decay) * mean
        weight, running = torch.where(here, new_weight, weight), torch.where(here, new_running, running)
        level, level_weight = take_level(of_model, level, level_weight, threshold)
        total = torch.where(here, gammas * numel * running / weight, 0.0).sum()
        numbers = self.numbers_of_all(total, groups)
        numbers[:, 1:] = torch.stack([running / weight, weight, keep], dim=1)
        return numbers, torch.stack([weight, running, level, level_weight], dim=1)

    def factor(
        self,
        grad: Tensor | None,
        momentum: Tensor | None,
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
        plan: Plan,
        constants: Sequence[Number],
        numbers: Sequence[Tensor],
        rate: Number,
    ) -> Number:
        """See `dgs_factor`."""
        assert isinstance(plan, DGSPlan) and grad is not None
        beta, eps, low, high, decay = constants
        collective, mean, weight, keep = numbers if numbers else (1.0, 0.0, 1.0, 1.0)
        if plan.averages:
            kept = state[IMPORTANCE]
            importance = kept.to(dtype)
            take_importance(grad, importance, decay, keep)
            if importance is not kept:
                kept.copy_(importance)
        else:
            importance, weight = grad.abs(), 1.0
        if plan.form is None:
            return rate
        return dgs_factor(
            plan.form,
            importance,
            collective=collective,
            mean=mean,
            beta=beta,
            eps=eps,
            bounds=cast("tuple[float, float]", (low, high)),
            rate=rate,
            weight=weight,
        )

    def _eps(self, group: Group) -> float:
        if not self.on_adam:
            return float(group["eps"])
        return float(group["eps"] if group["importance_eps"] is None else group["importance_eps"])


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
