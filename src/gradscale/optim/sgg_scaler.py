"""SGG as a scaler: when to group, over which layers, and what the state holds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gradscale.bases.adam import Number
from gradscale.optim.measure import measure
from gradscale.optim.pools import Pool, pools_of
from gradscale.optim.report import GroupingReport, LayerReport
from gradscale.optim.rule import Group, Layer, Plan, Slot, State
from gradscale.option_tables import SGG
from gradscale.options import DEFERRED, Option, OptionError
from gradscale.scalers.factor import cluster_numbers, factor_by_label, factor_by_value
from gradscale.scalers.sgg import Grouping, assign_labels, mda_over_clusters, update_scales

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
    history: None = None

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
        return FactorPlan(by, _clusters(group), by != "layer" and group["momentum_sign"] == "absolute")

    def constants(self, group: Group) -> tuple[float, ...]:
        """None: scales and boundaries are in the state."""
        return ()

    def reads_gradients(self, group: Group) -> Literal["no"]:
        """Scales come from momenta, now and then."""
        return "no"

    def numbers_of_all(self, total: Tensor, groups: list[Group]) -> Tensor:
        """Gradients are not read."""
        raise NotImplementedError

    def numbers_by_layer(
        self, sums: Tensor, numel: Tensor, gammas: Tensor, histories: Tensor | None, groups: list[Group], clock: int
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients are not read."""
        raise NotImplementedError

    def factor(
        self,
        grad: Tensor | None,
        momentum: Tensor | None,
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
        plan: Plan,
        constants: Sequence[Number],
        numbers: Sequence[Tensor],
        rate: Number,
    ) -> Number:
        """Scale of each element's cluster: as labelled at the last grouping, or by today's momentum."""
        # The few scales are multiplied by the rate, and not the many elements.
        plan, scales = _known(plan), state["scales"].to(dtype) * rate
        if plan.by == "layer":
            return scales[0]
        if plan.by == "label":
            return factor_by_label(state["labels"], scales)
        assert momentum is not None
        return factor_by_value(momentum, state["boundaries"], scales, absolute=plan.absolute)

    def keeps_labels(self, group: Group) -> bool:
        """Where labels are frozen."""
        return _keeps_labels(group)

    def relabel(self, momentum: Tensor, state: Mapping[str, Tensor], dtype: torch.dtype, plan: Plan) -> None:
        """See `assign_labels`, which labels outside of a pass."""
        labels, absolute = state["labels"], _known(plan).absolute
        numbers = cluster_numbers(momentum, state["boundaries"], dtype, absolute=absolute)
        labels.copy_(torch.where(state["relabel"] > 0, numbers, labels.to(dtype)))

    def observe(self, layers: list[Layer], clock: int) -> GroupingReport | None:
        """Group the layers' momenta, compare their deviations, move their scales.

        Layers may be sharded: decisions are made from counts over all shards, and so are the same on every rank. A
        layer that has no momentum yet (all zero) is left out; one whose momentum is not finite is left as it is and
        reported. Layers that are not due are measured, because D is that of the whole model, and not changed.
        """
        if not layers:
            return None
        pools = pools_of(layers)
        over = [pool.group["global_mda"] for pool in pools]
        found = measure(pools, [_clusters_of(pool) for pool in pools], deviations="parameters" in over)
        waiting = tuple(layer.name for place in found.bad for layer in pools[place].layers)
        if not found.rows:
            return GroupingReport(clock, 0.0, (), waiting) if waiting else None
        typical = {"clusters": mda_over_clusters(found.groupings)}
        if found.deviations is not None:
            typical["parameters"] = found.deviations.median()
        ready = sorted(found.rows)
        return GroupingReport(
            step=clock,
            global_mda=typical[over[ready[0]]],
            layers=tuple(_apply(pools[place], *found.rows[place], typical) for place in ready if pools[place].due),
            waiting=waiting,
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


def _apply(pool: Pool, grouping: Grouping, row: int, typical: Mapping[str, float]) -> LayerReport:
    """Write the decisions of a grouping into the state of one layer, or of all layers of a pool."""
    group = pool.group
    sizes, mda, centroids, boundaries = _with_empty_clusters(grouping, row, _clusters(group))
    scales = update_scales(
        pool.scales.to(mda.device),
        mda,
        sizes,
        global_mda=typical[group["global_mda"]],
        decay=group["scale_decay"],
        bounds=group["scale_bounds"],
    )
    for layer in pool.layers:
        layer.state["scales"].copy_(scales)
        layer.state["boundaries"].copy_(boundaries)
        if layer.relabel is not None:
            layer.relabel.fill_(1)
        elif _keeps_labels(group):
            absolute = group["momentum_sign"] == "absolute"
            assign_labels(layer.momentum, boundaries, absolute=absolute, out=layer.state["labels"])
    return LayerReport(
        name=pool.name,
        numel=pool.numel,
        counts=tuple(sizes.tolist()),
        centroids=tuple(centroids.tolist()),
        mda=tuple(mda.tolist()),
        scales=tuple(scales.tolist()),
        pooled=tuple(layer.name for layer in pool.layers) if len(pool.layers) > 1 else (),
    )


def _with_empty_clusters(grouping: Grouping, row: int, n_clusters: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sizes, MDAs, centroids and boundaries of one layer, which may have been grouped into fewer clusters."""
    missing = (0, n_clusters - grouping.sizes.shape[1])
    sizes, mda = (
        torch.nn.functional.pad(grouping.sizes[row], missing),
        torch.nn.functional.pad(grouping.mda[row], missing),
    )
    centroids, boundaries = (
        torch.nn.functional.pad(one[row], missing, value=math.inf) for one in (grouping.centroids, grouping.boundaries)
    )
    return sizes, mda, centroids, boundaries


def _known(plan: Plan) -> FactorPlan:
    assert isinstance(plan, FactorPlan)
    return plan


def _clusters_of(pool: Pool) -> int:
    """K, or 1 where there are too few elements for clusters to mean anything."""
    return 1 if pool.numel < pool.group["min_layer_size"] else _clusters(pool.group)


def _clusters(group: Group) -> int:
    return 1 if group["grouping"] == "layer" else int(group["n_clusters"])


def _keeps_labels(group: Group) -> bool:
    return bool(group["labels"] == "frozen" and _clusters(group) > 1)
