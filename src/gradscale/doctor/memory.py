"""Bytes that the optimizer needs on one rank, and sends in a grouping."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradscale.doctor.engine import Engine
from gradscale.optim.members import Member
from gradscale.optim.rule import arithmetic_dtype
from gradscale.optim.scaled import ScaledOptimizer
from gradscale.scalers.histogram import N_BINS

COUNTS = N_BINS + 1  # numbers per layer in a grouping: the bins, and one for inf and NaN
_STEP = 4  # bytes of the step count that every tensor has
_INT32_MAX = 2**31 - 1
# Measured, in bytes of one layer's counts in int64: what a grouping holds at its peak for all layers, and what the
# search for the clusters of 16 layers at a time holds beside counts of all.
_STATISTICS, _BESIDE, _SEARCH, _AT_A_TIME = 7.0, 3.0, 8.3, 16
_COUNTING = 10  # bytes per element of a chunk that is counted
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    Attributes:
        moments: the base optimizer's state.
        labels: the elements' clusters.
        scales: scales and boundaries of layers, and step counts.
        adamw: state of `torch.optim.AdamW` over the same tensors.
        step: the most that a step takes for a moment beside that.
        histograms: counts of all layers.
        grouping: the most that a grouping takes for a moment, histograms included.
    """

    moments: int
    labels: int
    scales: int
    adamw: int
    step: int
    histograms: int
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
            kind = "moments" if key in base else "labels" if key == "labels" else "scales"
            kinds[kind] += math.prod(slot.shape) * slot.dtype.itemsize
        kinds["scales"] += _STEP
        adamw += len(base) * member.param.numel() * member.param.dtype.itemsize + _STEP
    layers = sum(len(member.scaled) for member in members)
    row = COUNTS * 8
    largest = max((segment.length for member in members for segment in member.scaled), default=0)
    grouping = max(
        _STATISTICS * layers * row,
        (_BESIDE * layers + _SEARCH * min(layers, _AT_A_TIME)) * row,
        layers * row + _COUNTING * min(largest, _CHUNK),
    )
    return Memory(
        **kinds,
        adamw=adamw,
        step=max((_step_bytes(member) for member in members), default=0),
        histograms=layers * row,
        grouping=round(grouping) if layers else 0,
    )


def _step_bytes(member: Member) -> int:
    """The most that one tensor's update takes for a moment: intermediate results, each as large as the tensor."""
    numel, wide = member.param.numel(), arithmetic_dtype(member.param).itemsize
    cast = member.param.dtype != arithmetic_dtype(member.param)
    direction = numel * wide * (3 if cast else 2)
    group = member.group
    if group["grouping"] == "layer" or not member.scaled:
        return direction
    # The update, and for one layer at a time an index of 4 bytes, the factor, and live labels.
    piece = max(segment.length for segment in member.scaled)
    labels = 1 if group["labels"] == "live" else 0
    return max(direction, numel * wide + piece * (4 + wide + labels))


def sent_bytes(members: list[Member], engine: Engine) -> tuple[int, int]:
    """Return bytes of the all-reduce of a grouping, and what a ring makes of them in traffic per rank."""
    shared = [segment for member in members for segment in member.scaled if segment.process_groups]
    if not shared:
        return 0, 0
    wide = 4 if max(segment.numel for segment in shared) <= _INT32_MAX else 8
    sent = len(shared) * COUNTS * wide
    return sent, round(2 * (engine.shards - 1) / engine.shards * sent)
