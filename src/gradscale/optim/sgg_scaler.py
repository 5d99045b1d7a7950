"""SGG as a scaler: when to group, over which layers, and what the state holds."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from gradscale.optim.report import GroupingReport, LayerReport
from gradscale.optim.rule import Group, Layer, Slot, State
from gradscale.option_tables import SGG
from gradscale.options import DEFERRED, Option, OptionError
from gradscale.scalers.histogram import ZERO_EDGE, count_values
from gradscale.scalers.sgg import (
    Grouping,
    assign_labels,
    group_layers,
    mda_over_clusters,
    mda_over_parameters,
    scale_factor,
    update_scales,
)
from gradscale.sharding.reduce import sum_over_shards


def interval_in_steps(group: Group) -> int:
    """Return T in training steps.

    Raises:
        RuntimeError: T is a fraction of a run whose length was promised and has not come.
    """
    interval: int | float = group["recluster_interval"]
    total = group["total_steps"]
    if isinstance(interval, int):
        return interval
    if total == DEFERRED:
        raise RuntimeError(
            f"recluster_interval={interval} is a fraction of the run and its length is not known yet: call "
            "set_total_steps(n) before the first step (inside a Trainer, gradscale's callback does this)"
        )
    return max(1, round(interval * int(total)))


class SGGScaler:
    """See `gradscale.scalers.sgg`."""

    options: Mapping[str, Option] = SGG

    def check(self, group: Group) -> None:
        """A fraction of the run needs the run's length.

        Raises:
            OptionError: it is not given.
        """
        interval, total = group["recluster_interval"], group["total_steps"]
        if isinstance(interval, float) and total is None:
            raise OptionError(
                f"recluster_interval={interval} is a fraction of the run: give total_steps= as well (optimizer steps "
                "of the whole run), or give recluster_interval as a number of steps"
            )

    def scales(self, param: Tensor, group: Group) -> bool:
        """Layers are tensors of two or more dimensions; one cluster has nothing to compare with."""
        compares = group["n_clusters"] > 1 or group["grouping"] == "layer"
        return bool(group["scaled"] and compares and param.dim() >= 2 and param.numel() > 0)

    def slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        """Scales of 1 and boundaries above everything: until the first grouping all elements are in cluster 0."""
        n_clusters = _clusters(group)
        slots = {
            "scales": Slot(torch.float32, torch.Size([n_clusters]), 1.0),
            "boundaries": Slot(torch.float32, torch.Size([n_clusters - 1]), float("inf")),
        }
        if _keeps_labels(group):
            slots["labels"] = Slot(torch.uint8, param.shape)
        return slots

    def due(self, clock: int, group: Group) -> bool:
        """Every T steps."""
        return clock % interval_in_steps(group) == 0

    def factor(self, momentum: Tensor, state: State, group: Group, dtype: torch.dtype) -> Tensor:
        """Scale of each element's cluster: as labelled at the last grouping, or by today's momentum."""
        if _clusters(group) == 1:
            return cast(Tensor, state["scales"]).to(dtype).expand_as(momentum)
        labels = state["labels"] if _keeps_labels(group) else _labels(momentum, state, group)
        return scale_factor(labels, state["scales"], dtype)

    def observe(self, layers: list[Layer], clock: int) -> GroupingReport | None:
        """Group the layers' momenta, compare their deviations, move their scales.

        Layers may be sharded: decisions are made from counts over all shards, and so are the same on every rank. A
        layer that has no momentum yet (all zero) is left out; one whose momentum is not finite is left as it is and
        reported, with a RuntimeWarning.
        """
        if not layers:
            return None
        device = _statistics_device(layers[0].momentum.device)
        local = []
        for layer in layers:
            counts, bad = count_values(layer.momentum, absolute=layer.group["momentum_sign"] == "absolute")
            local.append(torch.cat([counts, bad.unsqueeze(0)]).to(device))
        largest = max(layer.numel for layer in layers)
        whole = sum_over_shards(local, [layer.shard for layer in layers], largest=largest)
        histograms = [counts[:-1] for counts in whole]
        is_bad = torch.stack([counts[-1] for counts in whole]).gt(0).tolist()
        is_zero = torch.stack([c.sum() == c[ZERO_EDGE - 1 : ZERO_EDGE + 1].sum() for c in histograms]).tolist()
        waiting = [layer.name for layer, bad in zip(layers, is_bad, strict=True) if bad]
        ready = [
            (layer, counts)
            for layer, counts, bad, zero in zip(layers, histograms, is_bad, is_zero, strict=True)
            if not bad and not zero
        ]
        if waiting:
            warnings.warn(
                f"step {clock}: the momentum of {', '.join(waiting)} holds inf or NaN. Its grouping waits: labels and "
                "scales stay as they are. The parameters are likely lost; look for the gradient that did it.",
                RuntimeWarning,
                stacklevel=2,
            )
        if not ready:
            return GroupingReport(clock, 0.0, (), tuple(waiting)) if waiting else None

        alike: dict[int, list[tuple[Layer, Tensor]]] = defaultdict(list)
        for layer, counts in ready:
            alike[_clusters(layer.group)].append((layer, counts))
        groupings = {k: group_layers(torch.stack([c for _, c in members]), k) for k, members in alike.items()}
        typical = _GlobalMDA(list(groupings.values()))
        reports = {
            id(layer): _apply(layer, grouping, row, typical.over(layer.group["global_mda"]))
            for k, grouping in groupings.items()
            for row, (layer, _) in enumerate(alike[k])
        }
        return GroupingReport(
            step=clock,
            global_mda=typical.over(ready[0][0].group["global_mda"]),
            layers=tuple(reports[id(layer)] for layer, _ in ready),
            waiting=tuple(waiting),
        )


class _GlobalMDA:
    """Global MDA by either definition, computed when first asked for."""

    def __init__(self, groupings: list[Grouping]) -> None:
        self._groupings = groupings
        self._known: dict[str, float] = {}

    def over(self, what: str) -> float:
        if what not in self._known:
            measure = mda_over_clusters if what == "clusters" else mda_over_parameters
            self._known[what] = measure(self._groupings)
        return self._known[what]


def _apply(layer: Layer, grouping: Grouping, row: int, global_mda: float) -> LayerReport:
    """Write the decisions of a grouping into one layer's state."""
    state, group = layer.state, layer.group
    sizes, mda = grouping.sizes[row], grouping.mda[row]
    scales = update_scales(
        state["scales"].to(mda.device),
        mda,
        sizes,
        global_mda=global_mda,
        decay=group["scale_decay"],
        bounds=group["scale_bounds"],
    )
    state["scales"].copy_(scales)
    state["boundaries"].copy_(grouping.boundaries[row])
    if _keeps_labels(group):
        state["labels"].copy_(_labels(layer.momentum, state, group))
    return LayerReport(
        name=layer.name,
        numel=layer.numel,
        counts=tuple(sizes.tolist()),
        centroids=tuple(grouping.centroids[row].tolist()),
        mda=tuple(mda.tolist()),
        scales=tuple(scales.tolist()),
    )


def _labels(momentum: Tensor, state: State, group: Group) -> Tensor:
    return assign_labels(momentum, state["boundaries"], absolute=group["momentum_sign"] == "absolute")


def _clusters(group: Group) -> int:
    return 1 if group["grouping"] == "layer" else int(group["n_clusters"])


def _keeps_labels(group: Group) -> bool:
    return bool(group["labels"] == "frozen" and _clusters(group) > 1)


def _statistics_device(device: torch.device) -> torch.device:
    # Apple's GPUs have no float64, in which the statistics are computed.
    return torch.device("cpu") if device.type == "mps" else device
