"""Trust ratios of updates, as LAMB has them: sums over each layer's update, on all ranks, before anything moves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradscale.optim.kernels.choice import StepKernel
from gradscale.optim.kernels.constants import Constants
from gradscale.optim.kernels.update_pass import RATIO
from gradscale.optim.kernels.update_sums import Stretch
from gradscale.optim.members import Member, local_state
from gradscale.optim.passes import Turn
from gradscale.optim.rule import BaseRule, State, arithmetic_dtype
from gradscale.sharding.dtensor import local_part
from gradscale.sharding.reduce import sharded_alike, sum_of_all_ranks
from gradscale.sharding.view import Segment


class UpdateRatios:
    """The trust ratio of each layer's update in one step. Passes are prepared with them before they are known.

    Attributes:
        extras: what `prepare_passes` takes as ratios.
    """

    def __init__(self, members: Sequence[Member], base: BaseRule, kernel: StepKernel) -> None:
        """Make room for the ratios of all layers that have one.

        Args:
            members: all members of the training step, the same on every rank, and also those without gradients.
            base: the base rule.
            kernel: how sums run.
        """
        self._base, self._kernel = base, kernel
        layers = [(member, place, member.view.segments[place]) for member in members for place in member.adapted]
        # Meta tensors have nothing to sum.
        self._layers: list[tuple[Member, int, Segment]] = [one for one in layers if not one[0].param.is_meta]
        alike: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        for index, (member, _, _) in enumerate(self._layers):
            param = local_part(member.param)
            alike[param.device, arithmetic_dtype(param)].append(index)
        self._tables = [
            (indices, torch.ones(len(indices), 1, device=device, dtype=dtype))
            for (device, dtype), indices in alike.items()
        ]
        self.extras: dict[tuple[int, int], dict[str, Tensor]] = {
            (id(member.param), place): {RATIO: torch.ones(1, device="meta")}
            for member, place, _ in layers
            if member.param.is_meta
        }
        for indices, table in self._tables:
            for index, ratio in zip(indices, table.unbind(), strict=True):
                member, place, _ = self._layers[index]
                self.extras[id(member.param), place] = {RATIO: ratio}

    def fill(self, turns: Sequence[Turn], states: Mapping[Tensor, State]) -> None:
        """Sum over all updates. Every rank must call it, once all gradients of the step are in the moments.

        Args:
            turns: the updates of the step. Layers without one take no part.
            states: the optimizer's state.
        """
        if not self._layers:
            return
        sums = self._sums({id(turn.member.param): turn for turn in turns}, states)
        for process_groups, members in sharded_alike([segment.process_groups for _, _, segment in self._layers]):
            sums[members] = sum_of_all_ranks(sums[members], process_groups)
        shapes = [segment.shape for _, _, segment in self._layers]
        groups = [member.group for member, _, _ in self._layers]
        ratios = self._base.trust_ratios(sums[:, 0], sums[:, 1], shapes, groups)
        for indices, table in self._tables:
            table.copy_(ratios[indices, None])

    def _sums(self, turns: Mapping[int, Turn], states: Mapping[Tensor, State]) -> Tensor:
        """Sums of squares over the parts that are here, of the weight and of its update. Float64 `[L, 2]`."""
        rows: list[Tensor] = []
        of: tuple[object, ...] = ()  # of a param group usually all tensors have seen as many steps
        for member, _, segment in self._layers:
            param, turn = local_part(member.param), turns.get(id(member.param))
            if turn is None or param.numel() == 0 or (member.view.flat and segment.length == 0):
                rows.append(torch.zeros(2, dtype=torch.float64, device=param.device))
                continue
            if of != (id(member.group), turn.number):
                of = (id(member.group), turn.number)
                rate, own = self._base.constants(member.group, turn.number)
                constants = Constants((rate, float(member.group["weight_decay"]), *own))
            keys = tuple(self._base.slots(member.param, member.group))
            state = local_state({key: states[member.param][key] for key in keys})
            tensors = [param, *[state[key] for key in keys]]
            if member.view.flat:
                tensors = [tensor[segment.start : segment.start + segment.length] for tensor in tensors]
            stretch = Stretch(self._base, self._base.plan(member.group), keys, tensors, constants)
            rows.append(torch.stack(self._kernel.update_sums(stretch)))
        first = rows[0].device
        return torch.stack([row.to(first) for row in rows])
