"""The two seams of the step loop: a base rule and a scaler, each bound to an optimizer's state and options."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gradscale.bases.adam import Number
from gradscale.optim.report import GroupingReport
from gradscale.options import Option

State = dict[str, Any]
Group = dict[str, Any]
Plan = Hashable  # the options that change what is computed, and not only its constants


@dataclass(frozen=True)
class Slot:
    """One state tensor of a parameter.

    Attributes:
        dtype: what it is held and restored in, whatever the parameter's dtype.
        shape: its shape.
        fill: its initial value.
        lowest, highest: bounds that saved values must keep to.
        ascending: whether saved values must ascend.
        may_be_nan: whether saved values may be NaN, as moments of a diverged run are.
        host: whether it is kept in host memory, wherever the parameter is.
    """

    dtype: torch.dtype
    shape: torch.Size
    fill: float = 0.0
    lowest: float = -math.inf
    highest: float = math.inf
    ascending: bool = False
    may_be_nan: bool = False
    host: bool = False


@dataclass(frozen=True)
class Layer:
    """A parameter that is scaled, with what the scaler needs of it.

    Attributes:
        name: for reports.
        numel: elements of the whole layer, on all ranks.
        process_groups: over which its parts are shared; empty where this rank holds all of it.
        momentum: the local part of its momentum, as it is kept; an empty tensor where it is not, or in fewer bits.
        state: the local parts of its state.
        group: its param group.
        due: whether its scales move now. All layers are measured whenever any is due: each is compared with the whole
            model.
        relabel: `[1]`, 0; becomes 1 if the layer is grouped, for a pass that comes later and labels its elements. None
            where none does: then they are labelled at once.
        ahead: makes the local part of what is grouped, where that is not the momentum that is kept: the one that the
            step will leave, where a grouping comes before the gradients are taken in, or one of the numbers that few
            bits stand for.
    """

    name: str
    numel: int
    process_groups: tuple[Any, ...]
    momentum: Tensor
    state: State
    group: Group
    due: bool
    relabel: Tensor | None = None
    ahead: Callable[[], Tensor] | None = None

    @property
    def grouped(self) -> Tensor:
        """What is grouped: the momentum, today's gradient included. Made anew at each call, if it is not kept."""
        return self.momentum if self.ahead is None else self.ahead()


def arithmetic_dtype(param: Tensor) -> torch.dtype:
    """Dtype in which a parameter's update is computed: float32 for 16-bit parameters, else the parameter's own."""
    return torch.float32 if param.dtype in (torch.bfloat16, torch.float16) else param.dtype


class BaseRule(Hashable, Protocol):
    """A base optimizer as two pure steps, bound to its state. Rules that compute the same are equal."""

    @property
    def options(self) -> Mapping[str, Option]:
        """Options of a param group that this rule reads."""

    @property
    def momentum(self) -> str:
        """State key of the tensor that scalers group."""

    @property
    def decoupled_weight_decay(self) -> bool:
        """Whether weight decay shrinks the parameter itself instead of entering the gradient."""

    @property
    def counts_steps(self) -> bool:
        """Whether torch's own optimizer of this rule counts its steps, so that state without a count is damaged."""

    @property
    def takes_trust_ratio(self) -> bool:
        """Whether `accumulate` takes the trust ratio of the layer, after its constants; `trust_ratios` gives it."""

    @property
    def adapts_updates(self) -> bool:
        """Whether a trust ratio multiplies the whole update of a layer, decoupled weight decay included.

        It is of the direction, so `accumulate` has taken all gradients when `trust_ratios` is asked for it.
        """

    @property
    def direction_first(self) -> bool:
        """Whether `direction` is that of the state before this gradient: it is called before `accumulate`."""

    def adapts(self, shape: torch.Size, group: Group) -> bool:
        """Whether a layer of this shape has a trust ratio of its update; others are updated as if it were 1."""

    def direction_reads_gradient(self, group: Group) -> bool:
        """Whether `direction` needs the gradient: a step that groups takes it only after the grouping then."""

    def check(self, group: Group) -> None:
        """Raise OptionError where options that are right alone contradict each other."""

    def slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        """State tensors of one parameter."""

    def plan(self, group: Group) -> Plan:
        """Return what of a group's options changes the computation."""

    def constants(self, group: Group, step: float) -> tuple[float, tuple[float, ...]]:
        """Return what the learning rate is multiplied by, and the numbers that `accumulate` and `direction` take.

        Args:
            group: the param group.
            step: updates of the tensor so far, this one included.
        """

    def accumulate(self, grad: Tensor, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan) -> None:
        """Take one gradient (not changed) into the state, in place; all in the dtype of the arithmetic."""

    def direction(
        self, grad: Tensor | None, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan
    ) -> Tensor:
        """Return the update direction as a new tensor.

        Args:
            grad: what `accumulate` took; None where it was taken in an earlier pass.
            state: the rule's part of the state.
            constants: see `constants`.
            plan: see `plan`.
        """

    def trust_ratios(
        self, weight_squares: Tensor, grad_squares: Tensor, shapes: Sequence[torch.Size], groups: Sequence[Group]
    ) -> Tensor:
        """Return the trust ratios of L layers, float64 `[L]`.

        Args:
            weight_squares: float64 `[L]`, sum of squares over each layer, on all ranks.
            grad_squares: likewise of its gradient, or where `adapts_updates` of its direction with weight decay.
            shapes: of the layers.
            groups: their param groups.
        """


class Scaler(Hashable, Protocol):
    """A learning-rate factor per element, bound to its state."""

    @property
    def options(self) -> Mapping[str, Option]:
        """Options of a param group that this scaler reads."""

    @property
    def history(self) -> str | None:
        """State key of what is kept of each layer's gradients, if anything is."""

    def check(self, group: Group) -> None:
        """Raise OptionError where options that are right alone contradict each other."""

    def scales(self, shape: torch.Size, group: Group) -> bool:
        """Whether a layer of this shape is scaled at all."""

    def slots(self, shape: torch.Size, layers: int | None, group: Group) -> dict[str, Slot]:
        """State tensors of one tensor of this shape with scaled layers in it.

        Args:
            shape: shape of the tensor, which that of per-element state is.
            layers: number of scaled layers in a flat tensor: per-layer state has a row for each. None for a tensor that
                is one layer: its state has no such dimension.
            group: its param group.
        """

    def due(self, clock: int, group: Group) -> bool:
        """Whether the layers of this group take part in statistics at training step `clock`."""

    def overdue(self, state: State, group: Group) -> bool:
        """Whether a tensor with this state should have been in statistics before, and was not."""

    def observe(self, layers: list[Layer], clock: int) -> GroupingReport | None:
        """Take statistics of all layers and move the scales of those that are due, in place. Never raises for data."""

    def keeps_labels(self, group: Group) -> bool:
        """Whether a grouping labels every element."""

    def relabel(self, momentum: Tensor, state: Mapping[str, Tensor], dtype: torch.dtype, plan: Plan) -> None:
        """Label elements in place, where `state["relabel"]` is not 0. Elementwise.

        Args:
            momentum: as it is kept, any shape.
            state: the strip's part of the state, and `relabel` (see `Layer`).
            dtype: dtype of the arithmetic.
            plan: see `plan`.
        """

    def warn(self, report: GroupingReport) -> None:
        """Say what went wrong in a grouping, once the step is complete."""

    def plan(self, group: Group) -> Plan:
        """Return what of a group's options changes the factor."""

    def constants(self, group: Group) -> tuple[float, ...]:
        """Return the numbers of a param group that `factor` takes."""

    def reads_gradients(self, group: Group) -> Literal["no", "together", "by layer"]:
        """Whether `factor` needs sums over all gradients of the step, and whether a sum for each layer."""

    def numbers_of_all(self, total: Tensor, groups: list[Group]) -> Tensor:
        """Return what `factor` takes of the sum over all gradients, float64 `[L, N]`.

        Args:
            total: float64 `[]`, of the importance of all elements, weighted by `gamma`.
            groups: the param group of each of L layers.
        """

    def numbers_by_layer(
        self, sums: Tensor, numel: Tensor, gammas: Tensor, histories: Tensor | None, groups: list[Group], clock: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return the same where layers are told apart, and their new histories.

        Args:
            sums: float64 `[L]`, of |gradient| over each layer.
            numel: float64 `[L]`, elements of each layer.
            gammas: float64 `[L]`, weight of a layer's elements in the sum over all.
            histories: float64 `[L, H]`, what the state has of each layer; None if nothing.
            groups: the param group of each layer.
            clock: the training step, from 1.
        """

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
        """Return what every element's direction is multiplied by (or one number for all). Elementwise.

        Args:
            grad: the gradient, without weight decay; None where it was taken in an earlier pass.
            momentum: as it is kept, any shape; None where the base keeps none.
            state: the strip's part of the state; what the scaler keeps per element may be changed.
            dtype: dtype of the result.
            plan: see `plan`.
            constants: see `constants`.
            numbers: see `numbers_of_all`; none if gradients are not read.
            rate: the learning rate, which the factor multiplies.
        """
