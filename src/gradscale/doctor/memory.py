"""Bytes that the optimizer needs on one rank, and sends in a grouping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradscale.adapter.sgg import SGG
from gradscale.doctor.engine import Engine
from gradscale.optim.ahead import waits_with_gradients
from gradscale.optim.kernels.choice import COMPILE_FROM
from gradscale.optim.kernels.eager import ELSEWHERE, ON_CPU
from gradscale.optim.kernels.update_pass import COMPENSATION
from gradscale.optim.members import Member
from gradscale.optim.rule import arithmetic_dtype
from gradscale.optim.scaled import ScaledOptimizer
from gradscale.scalers.histogram import N_BINS
from gradscale.sharding.dtensor import local_part

COUNTS = N_BINS + 1  # numbers per layer in a grouping: the bins, and one for inf and NaN
_STEP = 4  # bytes of the step count that every tensor has
_INT32_MAX = 2**31 - 1
# Of a grouping, in bytes: the buffers for counting (14 per element of a piece of 2^19, and two tables), and for each
# bin that a layer occupies what the search for its clusters takes. Momenta of large layers occupy 5 to 9 thousand.
_COUNTING, _PER_BIN, _OCCUPIED = 14 * 2**19 + 2**19, 70, 9000
_AT_A_TIME = 32  # layers


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    Attributes:
        moments: the base optimizer's state, and what rounding took from 16-bit parameters, if that is kept.
        labels: the elements' clusters, or their running importance.
        scales: scales and boundaries, or what is kept, of layers, and step counts.
        adamw: state of `torch.optim.AdamW` over the same tensors.
        step: the most that a step takes for a moment beside that.
        grouping: about what a grouping takes for a moment at most, with what is sent.
    """

    moments: int
    labels: int
    scales: int
    adamw: int
    step: int
    grouping: int

    @property
    def state(self) -> int:
        """All that lasts."""
        return self.moments + self.labels + self.scales


def memory_of(optimizer: ScaledOptimizer, members: list[Member]) -> Memory:
    """Return what tensors need, by the slots that the optimizer itself gives them."""
    kinds = {"moments": 0, "labels": 0, "scales": 0}
    adamw = 0
    for member in members:
        base = optimizer.base.slots(member.param, member.group)
        for key, slot in optimizer._slots(member).items():
            kind = "labels" if slot.shape == member.param.shape else "scales"
            kind = "moments" if key in base or key == COMPENSATION else kind
            kinds[kind] += math.prod(slot.shape) * slot.dtype.itemsize
        kinds["scales"] += _STEP
        adamw += len(base) * member.param.numel() * member.param.dtype.itemsize + _STEP
    return Memory(
        **kinds,
        adamw=adamw,
        step=0 if _is_compiled(optimizer, members) else max((_step_bytes(member) for member in members), default=0),
        grouping=grouping_bytes(members) + _ahead_bytes(optimizer, members) if groups_layers(optimizer) else 0,
    )


def grouping_bytes(members: Sequence[Member]) -> int:
    """About what a grouping takes for a moment at most, with what is sent."""
    segments = [segment for member in members for segment in member.scaled]
    if not segments:
        return 0
    some = sorted((min(segment.numel, _OCCUPIED) for segment in segments), reverse=True)[:_AT_A_TIME]
    sent = sum(COUNTS * 4 for segment in segments if segment.process_groups)
    return _COUNTING + sum(COUNTS * 5 + _PER_BIN * max(some) for _ in some) + sent


def _ahead_bytes(optimizer: ScaledOptimizer, members: Sequence[Member]) -> int:
    """Bytes of the momentum that one layer will have, where it is made anew to be grouped (see `optim.ahead`)."""
    if not waits_with_gradients(members, optimizer.base):
        return 0
    return max((segment.length * member.param.itemsize for member in members for segment in member.scaled), default=0)


def groups_layers(optimizer: ScaledOptimizer | SGG) -> bool:
    """Whether it counts momenta now and then, and not sums up gradients in each step."""
    return "recluster_interval" in optimizer.scaler.options


def _is_compiled(optimizer: ScaledOptimizer, members: list[Member]) -> bool:
    elements = sum(local_part(member.param).numel() for member in members)
    return optimizer.kernel == "compiled" or (optimizer.kernel == "auto" and elements >= COMPILE_FROM)


def _step_bytes(member: Member) -> int:
    """The most that a piece of one tensor takes for a moment, operation by operation. Compiled code takes nothing."""
    piece = min(member.param.numel(), ON_CPU if member.param.is_cpu else ELSEWHERE)
    wide = arithmetic_dtype(member.param).itemsize
    # At most: parameter, gradient and moments where they are not in the dtype of the arithmetic, and what lies between.
    return piece * wide * (5 if member.param.dtype == arithmetic_dtype(member.param) else 9)


def sent_for_ratios(optimizer: ScaledOptimizer | SGG, members: list[Member], engine: Engine) -> int:
    """Return bytes of the all-reduce for the trust ratios of updates (LAMB's), which each step makes besides.

    Two numbers for each layer: sums of squares of its weights and of its update.
    """
    if not isinstance(optimizer, ScaledOptimizer) or not optimizer.base.adapts_updates or engine.shards == 1:
        return 0
    layers = [(segment, member) for member in members for segment in member.view.segments]
    return sum(2 * 8 for segment, member in layers if optimizer.base.adapts(segment.shape, member.group))


def sent_bytes(optimizer: ScaledOptimizer | SGG, members: list[Member], engine: Engine) -> tuple[int, int]:
    """Return bytes of the all-reduce of a grouping or of a step, and what a ring makes of them in traffic per rank."""
    shared = [segment for member in members for segment in member.scaled if segment.process_groups]
    if not shared:
        return 0, 0
    if groups_layers(optimizer):
        sent = len(shared) * COUNTS * (4 if max(segment.numel for segment in shared) <= _INT32_MAX else 8)
    else:
        assert isinstance(optimizer, ScaledOptimizer)
        kinds = {optimizer.scaler.reads_gradients(member.group) for member in members}
        # Of each layer the sum of its gradient, and whether it has one; for trust ratios two sums of squares besides.
        if optimizer.base.takes_trust_ratio or "by layer" in kinds:
            sent = len(shared) * (4 if optimizer.base.takes_trust_ratio else 2) * 8
        else:
            sent = 8 if "together" in kinds else 0
    return sent, round(2 * (engine.shards - 1) / engine.shards * sent)
