"""SGG as a scaler: when to group, over which layers, and what the state holds."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.optim.report import GroupingReport, LayerReport
from gradscale.optim.rule import Group, Layer, Plan, Slot, State
from gradscale.option_tables import SGG
from gradscale.options import DEFERRED, Option, OptionError
from gradscale.scalers.factor import factor_by_label, factor_by_value
from gradscale.scalers.histogram import ZERO_EDGE, center_of, count_values
from gradscale.scalers.sgg import (
    Grouping,
    assign_labels,
    group_layers,
    mda_over_clusters,
    mda_over_parameters,
    update_scales,
)
from gradscale.sharding.reduce import sum_over_shards

_MAX_REFINEMENTS = 3  # each narrows the bins 128 times; three reach the resolution of float32
_LARGEST_SCALE = torch.finfo(torch.float32).max


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


class FactorPlan(NamedTuple):
    """How the factor of an element is found: by "label", by "value", or one for the whole "layer"."""

    by: str
    n_clusters: int
    absolute: bool


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

    def scales(self, shape: torch.Size, group: Group) -> bool:
        """Layers are tensors of two or more dimensions; one cluster has nothing to compare with."""
        compares = group["n_clusters"] > 1 or group["grouping"] == "layer"
        return bool(group["scaled"] and compares and len(shape) >= 2 and math.prod(shape) > 0)

    def slots(self, shape: torch.Size, layers: int | None, group: Group) -> dict[str, Slot]:
        """Scales of 1 and boundaries above everything: until the first grouping all elements are in cluster 0."""
        n_clusters = _clusters(group)
        rows = [] if layers is None else [layers]
        slots = {
            "scales": Slot(torch.float32, torch.Size([*rows, n_clusters]), 1.0, lowest=0.0, highest=_LARGEST_SCALE),
            "boundaries": Slot(torch.float32, torch.Size([*rows, n_clusters - 1]), float("inf"), ascending=True),
        }
        if _keeps_labels(group):
            slots["labels"] = Slot(torch.uint8, shape, lowest=0, highest=n_clusters - 1)
        return slots

    def due(self, clock: int, group: Group) -> bool:
        """Every T steps."""
        return clock % interval_in_steps(group) == 0

    def overdue(self, state: State, group: Group) -> bool:
        """Scales at their initial value after a first grouping was due, or after steps of a run of unknown length."""
        if state["scales"].shape[-1] == 1 or (state["scales"] != 1).any() or state["boundaries"].isfinite().any():
            return False
        deferred = isinstance(group["recluster_interval"], float) and group["total_steps"] == DEFERRED
        return float(state["step"]) >= (1 if deferred else interval_in_steps(group))

    def plan(self, group: Group) -> FactorPlan:
        """How a scale is chosen, of how many."""
        by = "label" if _keeps_labels(group) else "layer" if _clusters(group) == 1 else "value"
        return FactorPlan(by, _clusters(group), by == "value" and group["momentum_sign"] == "absolute")

    def reads(self, plan: Plan) -> tuple[str, ...]:
        """Scales, and labels or boundaries."""
        return {"layer": ("scales",), "label": ("labels", "scales"), "value": ("boundaries", "scales")}[_known(plan).by]

    def factor(self, momentum: Tensor, state: Mapping[str, Tensor], dtype: torch.dtype, plan: Plan) -> Tensor:
        """Scale of each element's cluster: as labelled at the last grouping, or by today's momentum."""
        plan, scales = _known(plan), state["scales"].to(dtype)
        if plan.by == "layer":
            return scales[0]
        if plan.by == "label":
            return factor_by_label(state["labels"], scales)
        return factor_by_value(momentum, state["boundaries"], scales, absolute=plan.absolute)

    def observe(self, layers: list[Layer], clock: int) -> GroupingReport | None:
        """Group the layers' momenta, compare their deviations, move their scales.

        Layers may be sharded: decisions are made from counts over all shards, and so are the same on every rank. A
        layer that has no momentum yet (all zero) is left out; one whose momentum is not finite is left as it is and
        reported. Layers that are not due are measured, because D is that of the whole model, and not changed.
        """
        if not layers:
            return None
        device = _statistics_device(layers[0].momentum.device)
        whole = _count_layers(layers, [0.0] * len(layers), device)
        histograms = [counts[:-1] for counts in whole]
        is_bad = torch.stack([counts[-1] for counts in whole]).gt(0).tolist()
        is_zero = torch.stack([c.sum() == c[ZERO_EDGE - 1 : ZERO_EDGE + 1].sum() for c in histograms]).tolist()
        waiting = [layer.name for layer, bad in zip(layers, is_bad, strict=True) if bad]
        ready = [
            (layer, counts)
            for layer, counts, bad, zero in zip(layers, histograms, is_bad, is_zero, strict=True)
            if not bad and not zero
        ]
        if not ready:
            return GroupingReport(clock, 0.0, (), tuple(waiting)) if waiting else None

        counts, centers = _refined([layer for layer, _ in ready], torch.stack([counts for _, counts in ready]))
        alike: dict[int, list[tuple[Layer, int]]] = defaultdict(list)
        for row, (layer, _) in enumerate(ready):
            alike[_clusters(layer.group)].append((layer, row))
        groupings = {}
        for k, members in alike.items():
            rows = torch.tensor([row for _, row in members], device=device)
            groupings[k] = group_layers(counts[rows], k, centers[rows])
        typical = _GlobalMDA(list(groupings.values()))
        reports = {
            id(layer): _apply(layer, grouping, row, typical.over(layer.group["global_mda"]))
            for k, grouping in groupings.items()
            for row, (layer, _) in enumerate(alike[k])
            if layer.due
        }
        return GroupingReport(
            step=clock,
            global_mda=typical.over(ready[0][0].group["global_mda"]),
            layers=tuple(reports[id(layer)] for layer, _ in ready if layer.due),
            waiting=tuple(waiting),
        )

    def warn(self, report: GroupingReport) -> None:
        """RuntimeWarning about layers that wait."""
        if report.waiting:
            warnings.warn(
                f"step {report.step}: the momentum of {', '.join(report.waiting)} holds inf or NaN. Grouping waits: "
                "labels and scales stay as they are. The parameters are likely lost; look for the gradient.",
                RuntimeWarning,
                stacklevel=3,
            )


def _count_layers(layers: list[Layer], centers: list[float], device: torch.device) -> list[Tensor]:
    """Counts of whole layers, on all ranks: per layer N_BINS counts, then the number of inf and NaN, int64."""
    local = []
    for layer, center in zip(layers, centers, strict=True):
        absolute = layer.group["momentum_sign"] == "absolute"
        counts, bad = count_values(layer.momentum, absolute=absolute, center=center)
        local.append(torch.cat([counts, bad.unsqueeze(0)]).to(device))
    return sum_over_shards(
        local, [layer.process_groups for layer in layers], largest=max(layer.numel for layer in layers)
    )


def _refined(layers: list[Layer], counts: Tensor) -> tuple[Tensor, Tensor]:
    """Count layers again that the grid does not resolve, around their mean, until it does.

    Args:
        layers: L layers.
        counts: int64 `[L, N_BINS]`, counted around zero.

    Returns:
        Counts `[L, N_BINS]` and the centres that they were taken around, float64 `[L]`. All ranks decide alike, from
        the same counts. Layers whose elements are all equal need the most passes and are the only ones to need many.
    """
    centers = torch.zeros(len(layers), dtype=torch.float64, device=counts.device)
    for _ in range(_MAX_REFINEMENTS):
        shift = center_of(counts)
        rows = [row for row, further in enumerate(shift.tolist()) if further != 0]
        if not rows:
            break
        centers += shift
        again = _count_layers([layers[row] for row in rows], [float(centers[row]) for row in rows], counts.device)
        counts[torch.tensor(rows, device=counts.device)] = torch.stack([new[:-1] for new in again])
    return counts, centers


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


def _known(plan: Plan) -> FactorPlan:
    assert isinstance(plan, FactorPlan)
    return plan


def _clusters(group: Group) -> int:
    return 1 if group["grouping"] == "layer" else int(group["n_clusters"])


def _keeps_labels(group: Group) -> bool:
    return bool(group["labels"] == "frozen" and _clusters(group) > 1)


def _statistics_device(device: torch.device) -> torch.device:
    # Apple's GPUs have no float64, in which the statistics are computed; CUDA has no deterministic sum along a row.
    deterministic = device.type == "cuda" and torch.are_deterministic_algorithms_enabled()
    return torch.device("cpu") if device.type == "mps" or deterministic else device
