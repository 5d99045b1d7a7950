"""What a grouping saw and decided, in plain Python numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """One layer, or one pool of layers, in one grouping; the tuples have one entry per cluster, ascending by centroid.

    With grouping="gmm" clusters ascend by how far they deviate, and with "dbscan" noise comes last. With "static" there
    is one entry for all blocks, with the median over them of each number.

    Attributes:
        name: name of the parameter, or its position where the optimizer was given no names; of a pool what its layers'
            names have in common.
        numel: elements of the layer or pool.
        counts: elements per cluster.
        centroids: mean momentum of each cluster; inf for a cluster without elements.
        mda: median deviation of each cluster from the layer's mean momentum, or what else the option `statistic` names.
        scales: learning-rate scale of each cluster from now on.
        pooled: names of the layers of a pool; empty for a layer that was grouped alone.
    """

    name: str
    numel: int
    counts: tuple[int, ...]
    centroids: tuple[float, ...]
    mda: tuple[float, ...]
    scales: tuple[float, ...]
    pooled: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroupingReport:
    """One grouping.

    Attributes:
        step: training step at which it was made.
        global_mda: typical deviation over the model (or what else `statistic` names) that the layers were compared
            with; that of the first layer where param groups differ. With `global_mda="layer"` it decides nothing.
        layers: the layers and pools that were grouped.
        waiting: names of layers whose momentum holds inf or NaN; they keep their labels and scales.
    """

    step: int
    global_mda: float
    layers: tuple[LayerReport, ...]
    waiting: tuple[str, ...]
