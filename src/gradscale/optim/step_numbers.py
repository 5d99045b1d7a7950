"""What a step has to know of all its gradients before the first parameter moves: sums over layers, on all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscale.optim.kernels.choice import StepKernel
from gradscale.optim.kernels.update_pass import NUMBERS
from gradscale.optim.members import Member, local_state
from gradscale.optim.rule import BaseRule, Scaler, State, arithmetic_dtype
from gradscale.scalers.dgs import sum_of_squares
from gradscale.sharding.dtensor import local_part
from gradscale.sharding.reduce import sharded_alike, sum_of_all_ranks
from gradscale.sharding.view import Segment


def reads_gradients(members: Sequence[Member], base: BaseRule, scaler: Scaler) -> bool:
    """Whether passes over these members need sums over all their gradients."""
    if base.takes_trust_ratio:
        return True
    groups = {id(member.group): member.group for member in members}
    return any(scaler.reads_gradients(group) != "no" for group in groups.values())


class StepNumbers:
    """The numbers of each layer in one step. Passes are prepared with them before they are known.

    Attributes:
        extras: what `prepare_passes` takes.
    """

    def __init__(self, members: Sequence[Member], base: BaseRule, scaler: Scaler, kernel: StepKernel) -> None:
        """Make room for the numbers of all layers.

        Args:
            members: all members of the training step, the same on every rank, and also those without gradients.
            base: the base rule.
            scaler: the scaler, which takes every layer.
            kernel: how sums run.
        """
        self._base, self._scaler, self._kernel = base, scaler, kernel
        layers = [(member, row, segment) for member in members for row, segment in enumerate(member.scaled)]
        # Meta tensors have nothing to sum.
        self._layers: list[tuple[Member, int, Segment]] = [one for one in layers if not one[0].param.is_meta]
        groups = {id(member.group): member.group for member in members}
        kinds = {scaler.reads_gradients(group) for group in groups.values()}
        self._by_layer = base.takes_trust_ratio or "by layer" in kinds
        alike: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        for index, (member, _, _) in enumerate(self._layers):
            param = local_part(member.param)
            alike[param.device, arithmetic_dtype(param)].append(index)
        self._tables = [
            (indices, torch.empty(len(indices), 5, device=device, dtype=dtype))
            for (device, dtype), indices in alike.items()
        ]
        self.extras = {
            (id(member.param), row): {NUMBERS: torch.empty(5, device="meta")}
            for member, row, _ in layers
            if member.param.is_meta
        }
        for indices, table in self._tables:
            for index, numbers in zip(indices, table.unbind(), strict=True):
                member, row, _ = self._layers[index]
                self.extras[id(member.param), row] = {NUMBERS: numbers}

    def fill(self, states: dict[Tensor, State], clock: int) -> None:
        """Read all gradients, and move on what the state keeps of them. Every rank must call it.

        Args:
            states: the optimizer's state.
            clock: the training step, from 1.
        """
        if not self._layers:
            return
        groups = [member.group for member, _, _ in self._layers]
        sums = self._sums()
        device = sums.device
        numels = [float(segment.numel) for _, _, segment in self._layers]
        numel = torch.tensor(numels, dtype=torch.float64).to(device)
        # Engines that put vectors of their own in the place of parameters leave out those that are frozen.
        trained = [n for n, (member, _, _) in zip(numels, self._layers, strict=True) if member.param.requires_grad]
        weights = [1 / sum(trained or numels) if group["gamma"] is None else group["gamma"] for group in groups]
        gammas = torch.tensor(weights, dtype=torch.float64).to(device)
        shards = [segment.process_groups for _, _, segment in self._layers]
        if not self._by_layer:
            # One number for each way of sharding, of which a model has one.
            total = (gammas * sums[:, 0])[[index for index, shard in enumerate(shards) if not shard]].sum()
            for process_groups, members in sharded_alike(shards):
                total = total + sum_of_all_ranks((gammas * sums[:, 0])[members].sum(), process_groups)
            self._write(torch.ones_like(numel), self._scaler.numbers_of_all(total, groups))
            return
        here = torch.tensor([float(member.param.grad is not None) for member, _, _ in self._layers], dtype=sums.dtype)
        sums = torch.cat([sums, here.to(device)[:, None]], dim=1)
        for process_groups, members in sharded_alike(shards):
            sums[members] = sum_of_all_ranks(sums[members], process_groups)
        # What no rank has a gradient of takes no part, as its state does not change either.
        taking_part = numel * (sums[:, -1] > 0)
        histories, where = self._histories(states, device)
        numbers, moved = self._scaler.numbers_by_layer(sums[:, 0], taking_part, gammas, histories, groups, clock)
        for index, history in where:
            assert moved is not None
            history.copy_(moved[index])
        ratios = torch.ones_like(numel)
        if self._base.takes_trust_ratio:
            shapes = [segment.shape for _, _, segment in self._layers]
            ratios = self._base.trust_ratios(sums[:, 1], sums[:, 2], shapes, groups)
        self._write(ratios, numbers)

    def _sums(self) -> Tensor:
        """Sums over the parts that are here: of |gradient|, and for trust ratios of squares. Float64 `[L, 1 or 3]`."""
        rows = []
        for member, _, segment in self._layers:
            param, grad = local_part(member.param), member.param.grad
            place = slice(segment.start, segment.start + segment.length)
            grad = None if grad is None else local_part(grad)[place] if member.view.flat else local_part(grad)
            weight = param[place] if member.view.flat else param
            if grad is None or grad.numel() == 0:
                zero = torch.zeros((), dtype=torch.float64, device=param.device)
                row = [zero, sum_of_squares(weight), zero] if self._base.takes_trust_ratio else [zero]
            else:
                row = self._kernel.sums([grad, weight] if self._base.takes_trust_ratio else [grad])
            rows.append(torch.stack(row))
        first = rows[0].device
        return torch.stack([row.to(first) for row in rows])

    def _histories(
        self, states: dict[Tensor, State], device: torch.device
    ) -> tuple[Tensor | None, list[tuple[int, Tensor]]]:
        """Return what the state has of each layer, 0 of those of which it has nothing, and where it has it."""
        where: list[tuple[int, Tensor]] = []
        for index, (member, row, _) in enumerate(self._layers):
            state = states.get(member.param)
            if state and self._scaler.history is not None and self._scaler.history in state:
                history = local_state(state)[self._scaler.history]
                where.append((index, history[row] if member.view.flat else history.view(-1)))
        if not where:
            return None, []
        width = len(where[0][1])
        histories = torch.zeros(len(self._layers), width, dtype=torch.float64, device=device)
        for index, history in where:
            histories[index] = history.to(device, torch.float64)
        return histories, where

    def _write(self, ratios: Tensor, numbers: Tensor) -> None:
        columns = torch.cat([ratios[:, None], numbers], dim=1)
        for indices, table in self._tables:
            table.copy_(columns[indices])
