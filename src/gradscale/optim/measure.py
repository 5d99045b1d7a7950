"""Statistics of layers, sharded or whole, a few layers at a time.

Layers that are pooled are one here: their counts are added up before anything is made of them. What is said of layers
below is said of pools.

What is held at once does not grow with the model: the counts of some layers, and of each layer a few numbers. Only what
is sent does: one row of counts per sharded layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.optim.pools import Pool
from gradscale.scalers.ablations import group_layers_otherwise
from gradscale.scalers.deviation import ParameterDeviations
from gradscale.scalers.histogram import N_BINS, Counter
from gradscale.scalers.occupied import Occupied
from gradscale.scalers.sgg import Grouping, group_layers
from gradscale.sharding.reduce import send_buffer, sharded_alike, sum_in_place

_AT_A_TIME = 32  # layers whose statistics are computed together
_INT32_MAX = 2**31 - 1
_MAX_REFINEMENTS = 3  # each narrows the bins 128 times; three reach the resolution of float32


class Way(NamedTuple):
    """How to group a layer: into how many clusters, by which method, and what to measure of them."""

    n_clusters: int
    grouping: str = "kmeans"
    statistic: str = "mda"


@dataclass(frozen=True)
class Measured:
    """What is known of some layers, the same on every rank.

    Attributes:
        groupings: the groupings of layers, a few layers in each, on the CPU.
        rows: of each layer that was grouped, by its place in the list: its grouping and its row in it.
        bad: places of the layers that hold inf or NaN. They are not grouped, nor are layers of nothing but zeros.
        deviations: of all parameters, if they were asked for.
    """

    groupings: list[Grouping]
    rows: dict[int, tuple[Grouping, int]]
    bad: list[int]
    deviations: ParameterDeviations | None


def measure(layers: Sequence[Pool], ways: Sequence[Way], *, deviations: bool) -> Measured:
    """Group layers by their momentum. Every rank must call it, with the same layers.

    Layers that the grid does not resolve are counted again around their mean, until it does: those whose elements are
    all equal need the most passes and are the only ones to need many.

    Args:
        layers: layers of momenta on one device.
        ways: how to group each.
        deviations: whether deviations of all parameters are wanted.
    """
    device = _statistics_device(layers[0].layers[0].momentum.device)
    found = Measured([], {}, [], ParameterDeviations(device) if deviations else None)
    places, centers = list(range(len(layers))), [0.0] * len(layers)
    for refinements_left in reversed(range(_MAX_REFINEMENTS + 1)):
        counts = LayerCounts([layers[place] for place in places], [centers[place] for place in places], device)
        alike: dict[Way, list[int]] = defaultdict(list)
        for index, place in enumerate(places):
            alike[ways[place]].append(index)
        narrow: dict[int, float] = {}
        for way, members in alike.items():
            for begin in range(0, len(members), _AT_A_TIME):
                some = members[begin : begin + _AT_A_TIME]
                around = {places[index]: centers[places[index]] for index in some}
                narrow |= _measure_some(found, counts.of(some), around, way, refine=refinements_left > 0)
        for place, shift in narrow.items():
            centers[place] += shift
        places = sorted(narrow)
        if not places:
            break
    found.bad.sort()
    return found


def _measure_some(
    found: Measured, counts: Tensor, around: dict[int, float], way: Way, *, refine: bool
) -> dict[int, float]:
    """Enter the statistics of some layers.

    Args:
        found: where to.
        counts: see `LayerCounts.of`.
        around: the layers' places in the list, in order, and what was subtracted before counting.
        way: how to group them.
        refine: whether they may be counted again.

    Returns:
        The places of those that should be counted again, and around how much more.
    """
    occupied = Occupied.of(counts[:, :N_BINS])
    shifts = occupied.center() if refine else occupied.mean.new_zeros(len(counts))
    # One look at the device for all that is decided here.
    flags = torch.stack([counts[:, N_BINS].to(torch.float64), occupied.is_zero.to(torch.float64), shifts]).tolist()
    ready, narrow = [], {}
    for row, (place, bad, is_zero, shift) in enumerate(zip(around, *flags, strict=True)):
        if bad > 0:
            found.bad.append(place)
        elif is_zero and around[place] == 0:
            continue
        elif shift != 0:
            narrow[place] = shift
        else:
            ready.append(row)
    if ready:
        if len(ready) < len(counts):
            occupied = occupied[torch.tensor(ready, device=counts.device)]
        members = [list(around)[row] for row in ready]
        centers = torch.tensor([around[place] for place in members], dtype=torch.float64, device=counts.device)
        n_clusters, method, statistic = way
        if method in ("kmeans", "layer") and statistic == "mda":
            grouping = group_layers(occupied, n_clusters, centers).cpu()
        else:
            grouping = group_layers_otherwise(occupied, n_clusters, centers, grouping=method, statistic=statistic)
        found.groupings.append(grouping)
        found.rows.update((place, (grouping, row)) for row, place in enumerate(members))
        if found.deviations is not None:
            found.deviations.add(occupied)
    return narrow


class LayerCounts:
    """Counts of layers, on all ranks: those of sharded layers from the beginning, of whole ones when asked for."""

    def __init__(self, layers: list[Pool], centers: list[float], device: torch.device) -> None:
        self._layers, self._centers = layers, centers
        self._counter = Counter(layers[0].layers[0].momentum.device)
        dtype = torch.int32 if max(layer.numel for layer in layers) <= _INT32_MAX else torch.int64
        self._some = torch.empty(min(len(layers), _AT_A_TIME), N_BINS + 1, dtype=dtype, device=device)
        self._sharded: dict[int, Tensor] = {}
        for groups, members in sharded_alike([pool.layers[0].process_groups for pool in layers]):
            # The one thing that grows with the number of layers: 0.26 MB for each, whatever its size, so that there is
            # one all-reduce for all of them. They are counted where they are sent from, and read from there.
            largest = max(layers[index].numel for index in members)
            rows = send_buffer(len(members), N_BINS + 1, groups, self._counter.device, largest=largest)
            for index, row in zip(members, rows, strict=True):
                self._count(index, row)
            sum_in_place(rows, groups)
            self._sharded.update(zip(members, rows, strict=True))

    def of(self, indices: list[int]) -> Tensor:
        """Per layer N_BINS counts, then the number of inf and NaN, integers. Overwritten by the next call."""
        some = self._some[: len(indices)]
        for index, row in zip(indices, some, strict=True):
            if index in self._sharded:
                row.copy_(self._sharded[index])
            else:
                self._count(index, row)
        return some

    def _count(self, index: int, row: Tensor) -> None:
        pool, center = self._layers[index], self._centers[index]
        absolute = pool.group["momentum_sign"] == "absolute"
        first, *others = pool.layers
        self._counter.count(first.grouped, row, absolute=absolute, center=center)
        more = torch.empty_like(row) if others else row
        for layer in others:
            self._counter.count(layer.grouped, more, absolute=absolute, center=center)
            row += more


def _statistics_device(device: torch.device) -> torch.device:
    # Apple's GPUs have no float64, in which the statistics are computed; CUDA has no deterministic sum along a row.
    deterministic = device.type == "cuda" and torch.are_deterministic_algorithms_enabled()
    return torch.device("cpu") if device.type == "mps" or deterministic else device
