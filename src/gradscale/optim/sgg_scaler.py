"""SGG as a scaler: when to group, over which layers, and what the state holds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gradscale.bases.adam import Number
from gradscale.optim.measure import Way
from gradscale.optim.pools import Pool, pools_of
from gradscale.optim.report import GroupingReport, LayerReport
from gradscale.optim.rule import Group, Layer, Plan, Slot, State
from gradscale.optim.static_blocks import measure_any, report_blocks, scales_of_blocks, write_scales
from gradscale.option_checks import check_sgg
from gradscale.option_tables import SGG
from gradscale.options import DEFERRED, Option, OptionError
from gradscale.scalers.ablations import IN_SEVERAL_INTERVALS
from gradscale.scalers.factor import cluster_numbers, factor_by_label, factor_by_value
from gradscale.scalers.pieces import pieces
from gradscale.scalers.sgg import Grouping, assign_labels, mda_of_layer, mda_over_clusters, update_scales

_PIECE = 1 << 20  # elements relabelled at a time
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
    """How the factor of an element is found: by "label", by "value", by "row", or one for the whole "layer".

    Clusters are `several` intervals, or one each.
    """

    by: str
    n_clusters: int
    absolute: bool
    several: bool = False


class SGGScaler:
    """See `gradscale.scalers.sgg`."""

    options: Mapping[str, Option] = SGG
    history: None = None

    def check(self, group: Group) -> None:
        """A fraction of the run needs the run's length.

        Raises:
            OptionError: it is not given; also see `check_sgg`.
        """
        check_sgg(group)
        interval, total = group["recluster_interval"], group["total_steps"]
        if isinstance(interval, float) and total is None:
            raise OptionError(
                f"recluster_interval={interval} is a fraction of the run: give total_steps= as well (optimizer steps "
                "of the whole run), or give recluster_interval as a number of steps"
            )

    def scales(self, shape: torch.Size, group: Group) -> bool:
        """Layers are tensors of two or more dimensions; one cluster has nothing to compare with."""
        compares = group["n_clusters"] > 1 or group["grouping"] in ("layer", "static")
        compares = compares and "none" not in (group["grouping"], group["statistic"])
        return bool(group["scaled"] and compares and len(shape) >= 2 and math.prod(shape) > 0)

    def slots(self, shape: torch.Size, layers: int | None, group: Group) -> dict[str, Slot]:
        """Scales of 1 and boundaries above everything: until the first grouping all elements are in cluster 0."""
        n_clusters, place = _clusters(group), group["labels_device"]
        rows = [] if layers is None else [layers]

        def per_layer(dtype: torch.dtype, numbers: int, fill: float, **bounds: Any) -> Slot:
            return Slot(dtype, torch.Size([*rows, numbers]), fill, **bounds, host=place == "cpu")

        if group["grouping"] == "static":
            return {"scales": per_layer(torch.float32, shape[0], 1.0, lowest=0.0, highest=_LARGEST_SCALE)}
        intervals = 2 * n_clusters - 1 if _in_several_intervals(group) else n_clusters
        slots = {
            "scales": per_layer(torch.float32, n_clusters, 1.0, lowest=0.0, highest=_LARGEST_SCALE),
            "boundaries": per_layer(torch.float32, intervals - 1, float("inf"), ascending=True),
        }
        if _in_several_intervals(group):
            slots["owners"] = per_layer(torch.uint8, intervals, 0.0, lowest=0, highest=n_clusters - 1)
        if _keeps_labels(group):
            slots["labels"] = Slot(torch.uint8, shape, lowest=0, highest=n_clusters - 1, host=place != "device")
        return slots

    def due(self, clock: int, group: Group) -> bool:
        """Every T steps."""
        return clock % interval_in_steps(group) == 0

    def overdue(self, state: State, group: Group) -> bool:
        """Scales at their initial value after a first grouping was due, or after steps of a run of unknown length."""
        boundaries = state.get("boundaries", state["scales"].new_empty(0))
        if state["scales"].shape[-1] == 1 or (state["scales"] != 1).any() or boundaries.isfinite().any():
            return False
        deferred = isinstance(group["recluster_interval"], float) and group["total_steps"] == DEFERRED
        return float(state["step"]) >= (1 if deferred else interval_in_steps(group))

    def plan(self, group: Group) -> FactorPlan:
        """How a scale is chosen, of how many."""
        if group["grouping"] == "static":
            return FactorPlan("row", 1, absolute=False)
        by = "label" if _keeps_labels(group) else "layer" if _clusters(group) == 1 else "value"
        absolute = by != "layer" and group["momentum_sign"] == "absolute"
        return FactorPlan(by, _clusters(group), absolute, _in_several_intervals(group))

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
        if plan.by == "row":
            return scales  # of each element already, see `with_scales_of_rows`
        if plan.by == "layer":
            return scales[0]
        if plan.by == "label":
            return factor_by_label(state["labels"], scales)
        assert momentum is not None
        if plan.several:
            scales = scales.index_select(0, state["owners"].to(torch.int64))
        return factor_by_value(momentum, state["boundaries"], scales, absolute=plan.absolute)

    def keeps_labels(self, group: Group) -> bool:
        """Where labels are frozen."""
        return _keeps_labels(group)

    def relabel(self, momentum: Tensor, state: Mapping[str, Tensor], dtype: torch.dtype, plan: Plan) -> None:
        """See `assign_labels`, which labels outside of a pass."""
        labels, plan = state["labels"], _known(plan)
        numbers = cluster_numbers(momentum, state["boundaries"], dtype, absolute=plan.absolute)
        if plan.several:
            numbers = factor_by_label(numbers, state["owners"].to(dtype))
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
        deviations = "parameters" in [pool.group["global_mda"] for pool in pools]
        found = measure_any(pools, [_way(pool) for pool in pools], deviations=deviations)
        waiting = tuple(layer.name for place in found.bad for layer in pools[place].layers)
        if not found.rows:
            return GroupingReport(clock, 0.0, (), waiting) if waiting else None
        ready = sorted(found.rows)
        # What is compared is of one kind: D of each statistic is that of the layers that are measured by it.
        statistics = dict.fromkeys(grouping.statistic for grouping in found.groupings)
        typical = {
            ("clusters", each): mda_over_clusters([one for one in found.groupings if one.statistic == each])
            for each in statistics
        }
        if found.deviations is not None:
            typical["parameters", "mda"] = found.deviations.median()
        return GroupingReport(
            step=clock,
            global_mda=typical[_compared(pools[ready[0]].group)],
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


def _way(pool: Pool) -> Way:
    """How to group: as one cluster where there are too few elements for several to mean anything."""
    group = pool.group
    if group["grouping"] != "static" and pool.numel < group["min_layer_size"]:
        return Way(1, "layer", group["statistic"])
    return Way(_clusters(group), group["grouping"], group["statistic"])


def _compared(group: Group) -> tuple[str, str]:
    """Which D of the model a group's layers are compared with, or where each is compared with itself, could be."""
    return "parameters" if group["global_mda"] == "parameters" else "clusters", group["statistic"]


def _apply(pool: Pool, grouping: Grouping, row: int, typical: Mapping[tuple[str, str], float]) -> LayerReport:
    """Write the decisions of a grouping into the state of one layer, or of all layers of a pool."""
    group = pool.group
    sizes, mda, centroids = grouping.sizes[row], grouping.mda[row], grouping.centroids[row]
    if group["grouping"] != "static":
        # A small layer is one cluster; the others are empty.
        missing = (0, _clusters(group) - len(sizes))
        sizes, mda = pad(sizes, missing), pad(mda, missing)
        centroids = pad(centroids, missing, value=math.inf)
    before = scales_of_blocks(pool.scales, group) if group["grouping"] == "static" else pool.scales
    scales = update_scales(
        before.to(mda.device),
        mda,
        sizes,
        global_mda=typical[_compared(group)] if group["global_mda"] != "layer" else mda_of_layer(mda, sizes),
        decay=group["scale_decay"],
        bounds=group["scale_bounds"],
        sign_only=grouping.statistic == "variance_sign",
    )
    if group["grouping"] == "static":
        write_scales(scales, pool.layers[0].state, group)
        return report_blocks(pool.layers[0], grouping, scales)
    for layer in pool.layers:
        layer.state["scales"].copy_(scales)
        _write_clusters(layer, grouping, row)
    return LayerReport(
        name=pool.name,
        numel=pool.numel,
        counts=tuple(sizes.tolist()),
        centroids=tuple(centroids.tolist()),
        mda=tuple(mda.tolist()),
        scales=tuple(scales.tolist()),
        pooled=tuple(layer.name for layer in pool.layers) if len(pool.layers) > 1 else (),
    )


def _write_clusters(layer: Layer, grouping: Grouping, row: int) -> None:
    """Write boundaries, and the labels of those elements that no pass labels later, into one layer's state."""
    state, group, boundaries = layer.state, layer.group, grouping.boundaries[row]
    # Of a small layer, whose one cluster ends nowhere.
    boundaries = pad(boundaries, (0, state["boundaries"].shape[-1] - len(boundaries)), value=math.inf)
    state["boundaries"].copy_(boundaries)
    owners = None if grouping.owners is None else grouping.owners[row]
    if "owners" in state:
        state["owners"].copy_(owners if owners is not None else torch.zeros_like(state["owners"]))
    if layer.relabel is not None:
        layer.relabel.fill_(1)
    elif _keeps_labels(group):
        absolute = group["momentum_sign"] == "absolute"
        assign_labels(layer.grouped, boundaries, absolute=absolute, out=state["labels"])
        if owners is not None:
            of_intervals = owners.to(state["labels"].device)
            for (piece,) in pieces(_PIECE, state["labels"]):
                piece.copy_(of_intervals[piece.to(torch.int64)])


def _known(plan: Plan) -> FactorPlan:
    assert isinstance(plan, FactorPlan)
    return plan


def _clusters(group: Group) -> int:
    return 1 if group["grouping"] in ("layer", "static") else int(group["n_clusters"])


def _in_several_intervals(group: Group) -> bool:
    return group["grouping"] in IN_SEVERAL_INTERVALS and int(group["n_clusters"]) > 1


def _keeps_labels(group: Group) -> bool:
    return bool(group["labels"] == "frozen" and _clusters(group) > 1)
