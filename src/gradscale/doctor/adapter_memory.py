"""Bytes that another library's optimizer keeps for a tensor, which nothing but the optimizer itself can tell.

So a twin of it steps tensors of that shape, or of smaller ones where that would take long. What is kept of a matrix
(moments, statistics of rows and of columns, blocks of few bits, projections) grows linearly with either dimension.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradscale.adapter.sgg import MOMENTUM, SGG
from gradscale.adapter.twin import twin_of, twin_options, uncompiled
from gradscale.doctor.memory import Memory, grouping_bytes
from gradscale.optim.members import Member
from gradscale.optim.rule import Group, arithmetic_dtype

_EXACT = 1 << 17  # elements up to which a tensor is stepped as it is
# In place of a matrix' shorter and longer dimension stand numbers that leave the same rest: what is no multiple of a
# block of 256 is kept otherwise.
_REST, _SHORT, _LONG = 256, (256, 512), (768, 1024)
_DEPTH = 4  # of state: dicts and objects within dicts


def memory_of_adapter(optimizer: SGG, members: Sequence[Member]) -> Memory:
    """Return what tensors need, those that are whole or have a part of the rows here. See `Memory`.

    Of large matrices the base's state is extrapolated, exactly where it is made of what the module says.
    """
    states = BaseStates(optimizer)
    kinds = {"moments": 0, "labels": 0, "scales": 0}
    adamw, step = 0, 0
    for member in members:
        param, options = member.param, optimizer._options.of_member(member)
        kinds["moments"] += states.bytes_of(param.shape, param.dtype, options.group)
        for key, slot in optimizer._own.slots(member).items():
            kind = "moments" if key == MOMENTUM else "labels" if slot.shape == param.shape else "scales"
            kinds[kind] += math.prod(slot.shape) * slot.dtype.itemsize
        adamw += 2 * param.numel() * param.dtype.itemsize + 4
        if member.scaled:
            # A copy of the tensor, and its factors.
            step = max(step, param.numel() * (param.dtype.itemsize + arithmetic_dtype(param).itemsize))
    return Memory(**kinds, adamw=adamw, step=step, grouping=grouping_bytes(members))


class BaseStates:
    """What the optimizer inside keeps, by shape.

    Args:
        optimizer: the adapter. Nothing of it is changed.
    """

    def __init__(self, optimizer: SGG) -> None:
        assert optimizer.base_optimizer is not None
        self._base = optimizer.base_optimizer
        self._known: dict[tuple[int, torch.Size, torch.dtype], int] = {}

    def bytes_of(self, shape: torch.Size, dtype: torch.dtype, group: Group) -> int:
        """Return the bytes of a tensor's state after its first step.

        Args:
            shape: of the tensor.
            dtype: of the tensor.
            group: its param group in the base.
        """
        key = id(group), shape, dtype
        if key not in self._known:
            self._known[key] = self._found(shape, dtype, group)
        return self._known[key]

    def _found(self, shape: torch.Size, dtype: torch.dtype, group: Group) -> int:
        numel = math.prod(shape)
        if numel == 0:
            return 0
        if numel <= _EXACT:
            return self._stepped(list(shape), dtype, group)
        long, short = _two_largest(shape)
        sizes = {long: _instead(shape[long], _LONG)}
        if short is not None:
            sizes[short] = _instead(shape[short], _SHORT)
        points, found = [], []
        for some in itertools.product(*sizes.values()):
            small = list(shape)
            for dimension, size in zip(sizes, some, strict=True):
                small[dimension] = size
            points.append([float(size) for size in some])
            found.append(float(self._stepped(small, dtype, group)))
        return round(_extrapolated(points, found, [float(shape[dimension]) for dimension in sizes]))

    def _stepped(self, shape: list[int], dtype: torch.dtype, group: Group) -> int:
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
        twin = twin_of(self._base, [weights], twin_options(self._base, group))
        param = twin.param_groups[0]["params"][0]
        param.grad = torch.full_like(param, 0.01)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), uncompiled():
            twin.step()
        return _bytes(twin.state[param], _DEPTH)


def _instead(size: int, of: tuple[int, int]) -> list[int]:
    smaller = [number + size % _REST for number in of]
    return smaller if size > smaller[-1] else [size]


def _two_largest(shape: torch.Size) -> tuple[int, int | None]:
    places = sorted(range(len(shape)), key=lambda place: shape[place], reverse=True)
    return places[0], places[1] if len(places) > 1 else None


def _extrapolated(points: list[list[float]], found: list[float], at: list[float]) -> float:
    """Return the value of the function that is linear in each dimension and goes through what was found."""
    rows = torch.tensor([_terms(point) for point in points], dtype=torch.float64)
    weights = torch.linalg.lstsq(rows, torch.tensor(found, dtype=torch.float64)[:, None]).solution[:, 0]
    return float(weights @ torch.tensor(_terms(at), dtype=torch.float64))


def _terms(point: list[float]) -> list[float]:
    return [math.prod(some) for n in range(len(point) + 1) for some in itertools.combinations(point, n)]


def _bytes(value: Any, depth: int) -> int:
    if isinstance(value, Tensor):
        inner: Sequence[str] = getattr(value, "tensor_attrs", ())  # torchao's, which is made of several
        if inner:
            return sum(_bytes(getattr(value, name), depth) for name in inner)
        return value.numel() * value.itemsize
    if depth == 0:
        return 0
    if isinstance(value, Mapping):
        return sum(_bytes(one, depth - 1) for one in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes(one, depth - 1) for one in value)
    return _bytes(vars(value), depth - 1) if hasattr(value, "__dict__") else 0
