"""A base, a scaler and an optimizer to start one's own from: what most have in common is done, the rest is said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gradscale.bases.adam import Number
from gradscale.optim.report import GroupingReport
from gradscale.optim.rule import Group, Layer, Plan, Slot, State
from gradscale.optim.scaled import ScaledOptimizer
from gradscale.option_tables import STEP, TORCH_SWITCHES
from gradscale.options import Flag, Option, nearest
from gradscale.presets import expanded, takes_presets

_MAXIMIZE = Option(Flag(), False, "ascend instead of descend")


class _ByContent:
    """Rules and scalers that compute the same are equal: compiled code is kept for each of them."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *sorted(vars(self).items())))


class PlainRule(_ByContent):
    """A base whose update of an element depends on that element alone. A subclass has `accumulate` and `direction`.

    Attributes:
        options: of a param group, that the rule reads, besides `lr`, `weight_decay` and `maximize`.
        state_keys: of the state, each a tensor of the parameter's shape, 0 at first.
        momentum: key of the one that scalers group; without it in `state_keys` the gradient is grouped.
        decoupled_weight_decay: whether weight decay shrinks the parameter itself instead of entering the gradient.
    """

    options: Mapping[str, Option] = MappingProxyType({})
    state_keys: tuple[str, ...] = ()
    momentum: str = "momentum_buffer"
    decoupled_weight_decay: bool = True
    counts_steps: bool = False
    takes_trust_ratio: bool = False
    adapts_updates: bool = False
    direction_first: bool = False

    def adapts(self, shape: torch.Size, group: Group) -> bool:
        """No layer has a trust ratio."""
        return False

    def direction_reads_gradient(self, group: Group) -> bool:
        """It may, so it gets it: what it computes is not known here."""
        return True

    def check(self, group: Group) -> None:
        """Raise OptionError where options that are right alone contradict each other. All combinations are allowed."""

    def slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        """The tensors of `state_keys` in the parameter's dtype, but float32 for float16, which has too little range."""
        dtype = torch.float32 if param.dtype == torch.float16 else param.dtype
        return {key: Slot(dtype, param.shape, may_be_nan=True) for key in self.state_keys}

    def plan(self, group: Group) -> Plan:
        """Return what of a group's options changes the computation, and not only its constants. Nothing does."""
        return None

    def constants(self, group: Group, step: float) -> tuple[float, tuple[float, ...]]:
        """Return what the learning rate is multiplied by, and the numbers that the two functions take: the options.

        Args:
            group: the param group.
            step: updates of the tensor so far, this one included.
        """
        return 1.0, tuple(float(group[name]) for name in self.options)

    def accumulate(self, grad: Tensor, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan) -> None:
        """Take one gradient (not changed) into the state, in place."""

    def direction(
        self, grad: Tensor | None, state: Mapping[str, Tensor], constants: Sequence[Number], plan: Plan
    ) -> Tensor:
        """Return the update direction as a new tensor."""
        raise NotImplementedError

    def trust_ratios(
        self, weight_squares: Tensor, grad_squares: Tensor, shapes: Sequence[torch.Size], groups: Sequence[Group]
    ) -> Tensor:
        """There are none."""
        raise NotImplementedError


class PlainScaler(_ByContent):
    """A scaler that sees one element at a time. A subclass has `factor`.

    Attributes:
        options: of a param group, that the scaler reads.
    """

    options: Mapping[str, Option] = MappingProxyType({})
    history: str | None = None

    def check(self, group: Group) -> None:
        """Raise OptionError where options that are right alone contradict each other. All combinations are allowed."""

    def scales(self, shape: torch.Size, group: Group) -> bool:
        """Whether a layer of this shape is scaled at all: all are, but for groups with `scaled=False`."""
        return bool(group["scaled"]) and math.prod(shape) > 0

    def slots(self, shape: torch.Size, layers: int | None, group: Group) -> dict[str, Slot]:
        """State tensors of one tensor. There are none."""
        return {}

    def constants(self, group: Group) -> tuple[float, ...]:
        """Return the numbers that `factor` takes: the options."""
        return tuple(float(group[name]) for name in self.options)

    def plan(self, group: Group) -> Plan:
        """Return what of a group's options changes the factor, and not only its constants. Nothing does."""
        return None

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
        """Return what every element's direction is multiplied by, `rate` included. See `gradscale.optim.rule`."""
        raise NotImplementedError

    def reads_gradients(self, group: Group) -> Literal["no"]:
        """No sum over gradients is needed."""
        return "no"

    def numbers_of_all(self, total: Tensor, groups: list[Group]) -> Tensor:
        """Sums are not read."""
        raise NotImplementedError

    def numbers_by_layer(
        self, sums: Tensor, numel: Tensor, gammas: Tensor, histories: Tensor | None, groups: list[Group], clock: int
    ) -> tuple[Tensor, Tensor | None]:
        """Sums are not read."""
        raise NotImplementedError

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


class CustomOptimizer(ScaledOptimizer):
    """An optimizer of one's own: a subclass names its `base` and its `scaler`, and takes the options of both.

    Args:
        params: tensors, (name, tensor) pairs, or param groups of them.
        lr: learning rate.
        weight_decay: decoupled or not as the base has it.
        module, target_modules, embedding_lr_factor, kernel: see `SGGAdamW`.
        **options: those of the base and of the scaler (of SGG also `preset`), `maximize`, `total_steps`, `kahan_sum`,
            and torch's switches.

    Raises:
        OptionError: an option is out of range.
        TypeError: there is no such option.
    """

    default_weight_decay: ClassVar[float] = 0.0

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        weight_decay: float | None = None,
        *,
        module: nn.Module | None = None,
        target_modules: str | list[str] | None = None,
        embedding_lr_factor: float | Literal["auto"] = 1.0,
        kernel: Literal["auto", "compiled", "eager"] = "auto",
        **options: Any,
    ) -> None:
        if takes_presets(self.scaler.options):
            options = expanded(options, beside=self.base.options)
        defaults: dict[str, Any] = {
            "lr": lr,
            "weight_decay": self.default_weight_decay if weight_decay is None else weight_decay,
            **{name: option.default for name, option in (*self.base.options.items(), *self.scaler.options.items())},
            "maximize": False,
            "total_steps": None,
            "kahan_sum": False,
        }
        for name in options:
            if name not in defaults and name not in TORCH_SWITCHES:
                raise TypeError(
                    f"{type(self).__name__}() got an unexpected keyword argument {name!r}{nearest(name, defaults)}"
                )
        switches = {name: options.pop(name, None) for name in TORCH_SWITCHES}
        super().__init__(
            params,
            {**defaults, **options},
            module=module,
            target_modules=target_modules,
            embedding_lr_factor=embedding_lr_factor,
            switches=switches,
            kernel=kernel,
        )

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Every option that `--optim_args` may give."""
        return {**cls.base.options, **cls.scaler.options, "maximize": _MAXIMIZE, **STEP}
