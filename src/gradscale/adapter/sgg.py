"""SGG on any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscale.adapter.adapted import Adapted
from gradscale.adapter.momentum import dense, is_quantized
from gradscale.adapter.own_state import OwnState
from gradscale.adapter.rescale import Factor, Rescaled
from gradscale.optim.members import Member, layers_of, local_state
from gradscale.optim.param_groups import as_list, group_members, named_tensors, names_of
from gradscale.optim.pools import check_pool_names
from gradscale.optim.report import GroupingReport
from gradscale.optim.rule import Layer, Slot, State, arithmetic_dtype
from gradscale.optim.sgg_options import SGGOptions, sgg_options
from gradscale.optim.sgg_scaler import SGGScaler
from gradscale.optim.static_blocks import with_scales_of_rows
from gradscale.option_tables import ADAPTER
from gradscale.presets import expanded
from gradscale.sharding.dtensor import local_part

if TYPE_CHECKING:
    from typing_extensions import Unpack

MOMENTUM = "momentum"
_DECAY = 0.9  # of the momentum that is kept for bases without one


class _State(OwnState):
    """SGG's state, and a momentum where the base keeps none."""

    def __init__(self, optimizer: SGG) -> None:
        super().__init__(optimizer.prefix, optimizer.scaler)
        self._optimizer = optimizer

    def slots(self, member: Member) -> dict[str, Slot]:
        slots = super().slots(member)
        if slots and self._optimizer.keeps_momentum(member):
            slots[MOMENTUM] = Slot(arithmetic_dtype(member.param), member.param.shape, may_be_nan=True)
        return slots


class SGG(Adapted):
    """SGG on top of another optimizer: what that adds to an element is multiplied by the scale of its cluster.

        w_i <- (1 - decay) w_i + S[cluster of i] u_i        u: the update of the base, without decoupled weight decay

    Grouping and scales are those of `SGGAdamW`, of the momentum that the base keeps (`traits` says which), in 8 or 4
    bits as bitsandbytes and torchao do too, or where it keeps none of what `kept_momentum` says. The base
    moves its momentum and the weights at once. So a grouping sees the momentum after step T, as `SGGAdamW` does, and
    its scales act from step T + 1 on, one step later than there. Trust ratios are the base's own.

    For everything else see `DGS`: how the base is stepped, which bases are refused, under which engines, and what is
    kept besides. Options of a group have the prefix `sgg_`. Groups of a sharded layer are those of the whole layer.

    Args:
        base_optimizer: the optimizer, made of the parameters to train. It must not be stepped apart from this one.
        n_clusters, recluster_interval, scale_decay, scale_bounds, momentum_sign, labels, global_mda, grouping,
            scope, static_block, statistic, labels_device, pool, min_layer_size, total_steps, preset: see `SGGAdamW`.
        kept_momentum: what is grouped where the base keeps no momentum: "mean", a running mean of the gradient with a
            decay of 0.9, kept here (4 bytes per element), or "gradient", that of the step of the grouping (no memory).
        module: the model, for names of layers in reports.

    Raises:
        OptionError: see `DGS`.
    """

    prefix = "sgg_"
    scaler = SGGScaler()
    own_options = ADAPTER

    def __init__(
        self,
        base_optimizer: Optimizer,
        *,
        kept_momentum: Literal["mean", "gradient"] = "mean",
        module: nn.Module | None = None,
        **sgg: Unpack[SGGOptions],
    ) -> None:
        options = sgg_options(sgg, owner=type(self).__name__, others=("kept_momentum", "module"))
        if isinstance(base_optimizer, Optimizer):
            names = names_of(module) if isinstance(module, nn.Module) else {}
            for group in base_optimizer.param_groups:
                _check_pool(
                    group, options, [(given or names.get(param), param) for given, param in group_members(group)]
                )
        super().__init__(base_optimizer, {**options, "kept_momentum": kept_momentum}, module)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group to the base; the adapter's options in it are checked before anything is changed.

        Raises:
            OptionError: an option is out of range, or the base's updates of this group cannot be scaled.
        """
        if self.base_optimizer is not None:
            own = self._options.checked(param_group)
            _check_pool(param_group, {"pool": own["sgg_pool"]}, named_tensors(as_list(param_group["params"]), {}))
        super().add_param_group(param_group)

    @property
    def grouping_report(self) -> GroupingReport | None:
        """The last grouping: what it saw and decided. None before the first. Not part of `state_dict()`."""
        return self._report

    def momentum_key(self, member: Member) -> str | None:
        """State key of the base's momentum; None if it keeps none."""
        return self._traits_of(self._options.of_member(member).group).momentum

    def keeps_momentum(self, member: Member) -> bool:
        """Whether a momentum of a scaled tensor is kept here, because the base has none."""
        return self.momentum_key(member) is None and not self._groups_gradient(member)

    def _reset(self) -> None:
        super()._reset()
        self._report: GroupingReport | None = None
        self._gradients: tuple[int, dict[int, Tensor]] = 0, {}  # to group, of one training step

    def _make_own_state(self) -> OwnState:
        return _State(self)

    def _take(self, together: list[Member], turns: list[tuple[Member, Tensor]], clock: int, *, last: bool) -> None:
        # Before anything is changed: it raises where the run length is not known.
        due = {id(member.group) for member in together if member.scaled and self.scaler.due(clock, member.group)}
        for member, grad in turns:
            own = self._own.of(member)
            if MOMENTUM in own:
                kept = local_part(own[MOMENTUM])
                kept.lerp_(local_part(grad).to(kept.dtype), 1 - _DECAY)
        gradients = self._gradients_of(turns, clock) if due else {}
        self._update(self._without_loss(turns) if due else turns, self._rescaled, last=last)
        if not due or not last:
            return
        layers: list[Layer] = []
        for member in together:
            if not member.scaled:
                continue
            momentum = self._momentum(member, gradients.pop(id(member.param), None))
            if momentum is None and member.view.process_groups:
                momentum = torch.zeros_like(local_part(member.param))  # its other parts are counted all the same
            if momentum is not None:
                layers.extend(self._layers(member, momentum, due=id(member.group) in due))
        report = self.scaler.observe(layers, clock)
        if report is not None:
            self._report = report
            self.scaler.warn(report)

    def _layers(self, member: Member, momentum: Tensor | Callable[[], Tensor], *, due: bool) -> Iterator[Layer]:
        """Yield the scaled layers of a member; no more than one momentum is made dense at a time."""
        state = local_state(self._own.of(member))
        if not callable(momentum):
            return layers_of(member, {**state, MOMENTUM: momentum}, MOMENTUM, due=due)
        state.pop(MOMENTUM, None)

        def ahead(place: slice | None, state: State) -> Tensor:
            return momentum() if place is None else momentum()[place]

        return layers_of(member, state, MOMENTUM, due=due, ahead=ahead)

    def _gradients_of(self, turns: list[tuple[Member, Tensor]], clock: int) -> dict[int, Tensor]:
        """Return the gradients to group, by id of the tensor; of earlier parts of the training step too."""
        if self._gradients[0] != clock:
            self._gradients = clock, {}
        for member, grad in turns:
            if member.scaled and self._groups_gradient(member):
                # An engine that brings the tensors one after the other may free this one before the last has come.
                self._gradients[1][id(member.param)] = grad if member.view.stepped_apart is None else grad.clone()
        return self._gradients[1]

    def _without_loss(self, turns: list[tuple[Member, Tensor]]) -> Iterator[tuple[Member, Tensor]]:
        """Yield the turns, with a copy of each gradient that is grouped after the base has seen it."""
        for member, grad in turns:
            yield member, grad.clone() if member.scaled and self._groups_gradient(member) else grad

    def _groups_gradient(self, member: Member) -> bool:
        return self.momentum_key(member) is None and self._options.of_member(member)["kept_momentum"] == "gradient"

    def _rescaled(self, member: Member, grad: Tensor) -> Rescaled:
        if not member.scaled:
            return Rescaled(None)
        scales = local_part(self._own.of(member)["scales"])
        if scales.device.type == "cpu" and bool((scales == 1).all()):
            return Rescaled(None)  # until the first grouping it is the base, bit for bit
        # The base may do what it likes with the gradient, and has moved its momentum when it is done.
        return Rescaled(lambda: self._factor(member, grad), after=not self._groups_gradient(member))

    def _factor(self, member: Member, grad: Tensor) -> Factor:
        """Return the scales of the elements that are here; live labels are those of today's momentum."""
        local = local_part(member.param)
        dtype, plan = arithmetic_dtype(local), self.scaler.plan(member.group)
        state = local_state(self._own.of(member))
        if plan.by == "value":
            momentum = self._momentum(member, grad)
            momentum = momentum() if callable(momentum) else momentum
            state[MOMENTUM] = torch.zeros_like(local) if momentum is None else momentum
        state = with_scales_of_rows(state, local.shape, member.group)
        # Of this tensor alone, what is kept in host memory.
        state = {key: value.to(local.device) if isinstance(value, Tensor) else value for key, value in state.items()}
        if not member.view.flat:
            return self.scaler.factor(None, state.get(MOMENTUM), state, dtype, plan, (), (), 1.0)
        factors = torch.ones_like(member.param, dtype=dtype)  # of padding, and of layers that are not scaled
        for _, place, part in member.parts(state, MOMENTUM):
            assert place is not None
            factors[place] = self.scaler.factor(None, part.get(MOMENTUM), part, dtype, plan, (), (), 1.0)
        return factors

    def _momentum(self, member: Member, grad: Tensor | None) -> Tensor | Callable[[], Tensor] | None:
        """Return what is grouped of the part of a layer that is here.

        Args:
            member: the layer.
            grad: its gradient of this step.

        Returns:
            What makes it, where the base keeps it in fewer bits. None if there is nothing yet.
        """
        key, own = self.momentum_key(member), self._own.of(member)
        if key is not None:
            state: Any = self.state.get(member.param, {})
            if is_quantized(state, key):
                return lambda: cast(Tensor, dense(state, key))
            return dense(state, key)
        if MOMENTUM in own:
            return local_part(own[MOMENTUM])
        return None if grad is None else local_part(grad)


def _check_pool(
    group: Mapping[str, Any], options: Mapping[str, Any], members: Iterable[tuple[str | None, Tensor]]
) -> None:
    """Check that a param group has the names that its pools need.

    Raises:
        OptionError: it has not.
    """
    group = expanded(group, prefix="sgg_")
    own = {"pool": group.get("sgg_pool", options["pool"]), "scaled": group.get("sgg_scaled", True)}
    check_pool_names(own, members)
