"""The tensors that the optimizer gets on one rank, by engine, computed and not tried.

The rank is the one that holds most. Its tensors have the shapes that they would have there and no values; everything
else about them (which layers are in them, what state they get) is the optimizer's own code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from gradscale.doctor.engine import Engine
from gradscale.doctor.findings import Findings
from gradscale.doctor.plan import Plan, Planned
from gradscale.doctor.units import Unit, fsdp1_units, layer_classes
from gradscale.optim.members import Member
from gradscale.sharding.view import Segment, TensorView

_NCCL_ALIGNMENT = 2  # elements per rank to which ZeRO 1 and 2 pad the vector of a param group


@dataclass(frozen=True)
class Placement:
    """What one rank has.

    Attributes:
        members: the optimizer's tensors on the rank that holds most.
        words: how each parameter is sharded, by name.
        ranks: first and last rank of those that share a parameter, where these are not all. By name.
    """

    members: list[Member]
    words: dict[str, str]
    ranks: dict[str, tuple[int, int]] = field(default_factory=dict)


def place(plan: Plan, engine: Engine, model: torch.nn.Module, findings: Findings) -> Placement:
    """Return what the rank that holds most has of a plan's parameters."""
    if engine.kind == "fsdp2":
        return _rows(plan, engine, model, findings)
    if engine.kind == "fsdp1":
        return _fsdp1(plan, engine, fsdp1_units(model, engine, findings))
    if engine.kind == "zero" and engine.zero_stage:
        return _zero_3(plan, engine) if engine.zero_stage == 3 else _zero_1_or_2(plan, engine)
    members = [_like(planned, planned.param.shape, engine) for planned in plan.parameters if planned.member]
    words = "whole" if engine.processes == 1 else "whole on every rank"
    return Placement(members, {planned.name: words for planned in plan.parameters})


def _rows(plan: Plan, engine: Engine, model: torch.nn.Module, findings: Findings) -> Placement:
    """FSDP2 cuts every parameter along its first dimension, as `torch.chunk` does: rank 0 has as much as any."""
    if engine.wrapping.policy == "TRANSFORMER_BASED_WRAP":
        layer_classes(model, engine.wrapping, findings)
    members, words = [], {}
    for planned in plan.parameters:
        shape = planned.param.shape
        if not shape:
            findings.not_supported.append(f"FSDP2 takes no parameters without dimensions: {planned.name}")
            rows = holders = 0
        else:
            rows = -(-shape[0] // engine.shards)
            holders = math.ceil(shape[0] / rows) if rows else 0
            most = "" if shape[0] == rows * holders else "at most "
            some = f"each of {holders}" if holders == engine.shards else f"{holders} of {engine.shards}"
            words[planned.name] = f"{most}{rows} of {shape[0]} rows on {some} ranks{_copies(engine)}"
        if planned.member:
            members.append(_like(planned, torch.Size([rows, *shape[1:]]) if shape else shape, engine))
    return Placement(members, words)


def _fsdp1(plan: Plan, engine: Engine, units: list[Unit]) -> Placement:
    """FSDP1 cuts the vector of each unit into equal stretches: a parameter may be on few ranks, or on one."""
    unit_of = {key: unit for unit in units for key in unit.begins}
    parts = {planned.name: _stretches(planned, unit_of[id(planned.param)]) for planned in plan.parameters}
    held = [0] * engine.shards
    for planned in plan.parameters:
        for rank, (low, high) in parts[planned.name].items():
            held[rank] += high - low if planned.member else 0
    fullest = held.index(max(held))
    words, members = {}, []
    tensors: dict[int, list[tuple[Planned, int, int]]] = {}
    for planned in plan.parameters:
        unit, ranks = unit_of[id(planned.param)], parts[planned.name]
        share = f"of which {engine.shards} ranks have 1/{engine.shards} each{_copies(engine)}"
        words[planned.name] = f"in the vector of a {unit.kind}, {share}" if engine.shards > 1 else "whole on every rank"
        if planned.member:
            low, high = ranks.get(fullest, (0, 0))
            key = id(unit) if engine.flat_params else id(planned.param)
            tensors.setdefault(key, []).append((planned, low, high))
    stretches = {id(unit): unit.stretch for unit in units}
    for key, pieces in tensors.items():
        numel = stretches.get(key, sum(high - low for _, low, high in pieces))
        members.append(_flat(pieces, numel, plan, engine))
    some = {name: (min(ranks), max(ranks)) for name, ranks in parts.items() if 0 < len(ranks) < engine.shards}
    return Placement(members, words, some)


def _stretches(planned: Planned, unit: Unit) -> dict[int, tuple[int, int]]:
    """Part of a parameter that each rank has, of the ranks that have any."""
    begin = unit.begins[id(planned.param)]
    end = begin + planned.param.numel()
    return {
        rank: (max(begin, rank * unit.stretch) - begin, min(end, (rank + 1) * unit.stretch) - begin)
        for rank in range(begin // unit.stretch, -(-end // unit.stretch))
        if end > begin
    }


def _zero_1_or_2(plan: Plan, engine: Engine) -> Placement:
    """ZeRO 1 and 2 cut the vector of each param group into equal stretches, one per rank."""
    words = {planned.name: "whole on every rank" for planned in plan.parameters}
    members = []
    for index, group in _by_group(plan):
        numel = sum(planned.param.numel() for planned in group)
        unit = _NCCL_ALIGNMENT * engine.shards
        stretch = -(-numel // unit) * _NCCL_ALIGNMENT
        pieces, begin = [], 0
        for planned in group:
            end = begin + planned.param.numel()
            low, high = min(begin, stretch), min(end, stretch)
            pieces.append((planned, low - begin, high - begin) if low < high else (planned, 0, 0))
            begin = end
        members.append(_flat(pieces, stretch, plan, engine))
        for planned in group:
            words[planned.name] = f"whole on every rank; each updates 1/{engine.shards} of param group {index}"
    return Placement(members, words)


def _zero_3(plan: Plan, engine: Engine) -> Placement:
    """ZeRO 3 cuts every parameter into equal parts, and lays those of a param group into vectors of limited size."""
    words = {
        planned.name: f"1/{engine.shards} of its elements on each rank" if engine.shards > 1 else "whole"
        for planned in plan.parameters
    }
    members = []
    for _, group in _by_group(plan):
        parts = {planned.name: -(-planned.param.numel() // engine.shards) for planned in group}
        vectors: list[list[Planned]] = [[]]
        size = 0
        whole = engine.sub_group_size >= sum(parts.values())
        for planned in group:
            if not whole and size >= engine.sub_group_size:
                vectors.append([])
                size = 0
            vectors[-1].append(planned)
            size += parts[planned.name]
        for vector in vectors:
            pieces = [(planned, 0, min(planned.param.numel(), parts[planned.name])) for planned in vector]
            members.append(_flat(pieces, sum(parts[planned.name] for planned in vector), plan, engine))
    return Placement(members, words)


def _by_group(plan: Plan) -> Iterable[tuple[int, list[Planned]]]:
    groups: dict[int, list[Planned]] = {}
    for planned in plan.parameters:
        if planned.group is not None:
            groups.setdefault(planned.group, []).append(planned)
    return sorted(groups.items())


def _like(planned: Planned, shape: torch.Size, engine: Engine) -> Member:
    """The member of a parameter that keeps its dimensions, with the shape that it has on a rank."""
    assert planned.member is not None
    param = torch.empty(shape, dtype=state_dtype(planned.param, engine), device="meta")
    groups = ("the ranks that share it",) if engine.shards > 1 else ()
    scaled = tuple(replace(one, length=param.numel(), process_groups=groups) for one in planned.member.scaled)
    return replace(planned.member, param=param, scaled=scaled)


def _flat(pieces: list[tuple[Planned, int, int]], numel: int, plan: Plan, engine: Engine) -> Member:
    """The member of a vector with pieces (parameter, first element, end) of layers."""
    member = pieces[0][0].member
    assert member is not None
    groups = ("the ranks that share it",) if engine.shards > 1 else ()
    segments, start = [], 0
    for planned, low, high in pieces:
        segments.append(Segment(planned.name, planned.param.shape, start, high - low, low, groups))
        start += high - low
    param = torch.empty(numel, dtype=state_dtype(pieces[0][0].param, engine), device="meta")
    scaler = plan.optimizer.scaler
    scaled = tuple(one for one in segments if scaler.scales(one.shape, member.group))
    return Member(param, member.group, TensorView(tuple(segments), flat=True), scaled)


def state_dtype(param: torch.Tensor, engine: Engine) -> torch.dtype:
    """Dtype of what the optimizer steps: the parameter's, unless the engine keeps a copy of its own."""
    if engine.master_dtype is not None:
        dtype: torch.dtype = getattr(torch, engine.master_dtype)
        return dtype
    # accelerate casts what FSDP trains with mixed precision up to float32.
    return torch.float32 if engine.kind in ("fsdp1", "fsdp2") and engine.mixed_precision != "no" else param.dtype


def _copies(engine: Engine) -> str:
    return f", in {engine.copies} copies" if engine.copies > 1 else ""
