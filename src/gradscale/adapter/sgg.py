"""SGG on any optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscale.adapter.adapted import Adapted
from gradscale.adapter.own_state import OwnState
from gradscale.adapter.rescale import Factor, Rescaled
from gradscale.optim.members import Member, layers_of, local_state
from gradscale.optim.param_groups import as_list, group_members, named_tensors, names_of
from gradscale.optim.pools import check_pool_names
from gradscale.optim.report import GroupingReport
from gradscale.optim.rule import Layer, Slot, State, arithmetic_dtype
from gradscale.optim.sgg_options import SGGOptions, sgg_options
from gradscale.optim.sgg_scaler import SGGScaler
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
        if slots and self._optimizer.momentum_key(member) is None:
            slots[MOMENTUM] = Slot(arithmetic_dtype(member.param), member.param.shape, may_be_nan=True)
        return slots


class SGG(Adapted):
    """SGG on top of another optimizer: what that adds to an element is multiplied by the scale of its cluster.

        w_i <- (1 - decay) w_i + S[cluster of i] u_i        u: the update of the base, without decoupled weight decay

    Grouping and scales are those of `SGGAdamW`, of the momentum that the base keeps (`traits` says which), or of a
    running mean of the gradient with a decay of 0.9, kept here (4 bytes per element), where it keeps none. The base
    moves its momentum and the weights at once. So a grouping sees the momentum after step T, as `SGGAdamW` does, and
    its scales act from step T + 1 on, one step later than there. Trust ratios are the base's own.

    For everything else see `DGS`: how the base is stepped, which bases are refused, and what is kept besides. Options
    of a group have the prefix `sgg_`. Layers are whole tensors: under FSDP1 and DeepSpeed ZeRO take an optimizer by
    name.

    Args:
        base_optimizer: the optimizer, made of the parameters to train. It must not be stepped apart from this one.
        n_clusters, recluster_interval, scale_decay, scale_bounds, momentum_sign, labels, global_mda, grouping,
            pool, min_layer_size, total_steps: see `SGGAdamW`.
        module: the model, for names of layers in reports.

    Raises:
        OptionError: see `DGS`.
    """

    prefix = "sgg_"
    scaler = SGGScaler()

    def __init__(
        self,
        base_optimizer: Optimizer,
        *,
        module: nn.Module | None = None,
        **sgg: Unpack[SGGOptions],
    ) -> None:
        options = sgg_options(sgg, owner=type(self).__name__, others=("module",))
        self._report: GroupingReport | None = None
        if isinstance(base_optimizer, Optimizer):
            names = names_of(module) if isinstance(module, nn.Module) else {}
            for group in base_optimizer.param_groups:
                _check_pool(
                    group, options, [(given or names.get(param), param) for given, param in group_members(group)]
                )
        super().__init__(base_optimizer, options, module)

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

    def _make_own_state(self) -> OwnState:
        return _State(self)

    def _take(self, together: list[Member], turns: list[tuple[Member, Tensor]], clock: int) -> None:
        # Before anything is changed: it raises where the run length is not known.
        due = {id(member.group) for member in together if member.scaled and self.scaler.due(clock, member.group)}
        for member, grad in turns:
            own = self._own.of(member)
            if MOMENTUM in own:
                kept = local_part(own[MOMENTUM])
                kept.lerp_(local_part(grad).to(kept.dtype), 1 - _DECAY)
        self._update(turns, self._rescaled)
        if not due:
            return
        layers: list[Layer] = []
        for member in together:
            started = member.param in (self._own.states if self.momentum_key(member) is None else self.state)
            if member.scaled and (started or member.view.process_groups):
                state = self._with_momentum(member)
                layers.extend(layers_of(member, state, MOMENTUM, due=id(member.group) in due))
        report = self.scaler.observe(layers, clock)
        if report is not None:
            self._report = report
            self.scaler.warn(report)

    def _rescaled(self, member: Member, grad: Tensor) -> Rescaled:
        if not member.scaled:
            return Rescaled(None)
        scales = local_part(self._own.of(member)["scales"])
        if scales.device.type == "cpu" and bool((scales == 1).all()):
            return Rescaled(None)  # until the first grouping it is the base, bit for bit
        return Rescaled(lambda: self._factor(member), after=True)

    def _factor(self, member: Member) -> Factor:
        """Return the scales of the elements that are here; live labels are those of today's momentum."""
        state = self._with_momentum(member)
        momentum, dtype = state[MOMENTUM], arithmetic_dtype(local_part(member.param))
        plan = self.scaler.plan(member.group)
        return self.scaler.factor(None, momentum, state, dtype, plan, (), (), 1.0)

    def _with_momentum(self, member: Member) -> State:
        """State of the part of a layer that is here, with the momentum to group."""
        state, key = local_state(self._own.of(member)), self.momentum_key(member)
        if key is None:
            return state
        of_base: Any = self.state.get(member.param, {}).get(key)
        local = local_part(member.param)
        momentum = torch.zeros_like(local) if of_base is None else local_part(of_base)
        return {**state, MOMENTUM: momentum}


def _check_pool(
    group: Mapping[str, Any], options: Mapping[str, Any], members: Iterable[tuple[str | None, Tensor]]
) -> None:
    """Check that a param group has the names that its pools need.

    Raises:
        OptionError: it has not.
    """
    own = {"pool": group.get("sgg_pool", options["pool"]), "scaled": group.get("sgg_scaled", True)}
    check_pool_names(own, members)
