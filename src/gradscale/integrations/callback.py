"""The Trainer callback: tells an optimizer the length of the run and logs its scales. Imports transformers."""

from __future__ import annotations

import warnings
from typing import Any

from transformers.trainer_callback import TrainerCallback

from gradscale.integrations.training_args_patch import entry_of


class ScaleCallback(TrainerCallback):
    """Serves every optimizer that has `set_total_steps` or `grouping_report`, and ignores all others.

    After a grouping, the next training log carries `sgg/...` keys (see `scale_statistics`), in `log_history` and in
    what trackers such as TensorBoard receive.
    """

    def __init__(self) -> None:
        self._logged_step: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Give the optimizer the number of optimizer steps of this run."""
        self._logged_step = None
        inner = find_attribute(optimizer, "set_total_steps")
        if inner is None or state.max_steps <= 0:
            return
        # An optimizer chosen by name always follows the Trainer, also where a checkpoint brought back the length of an
        # earlier run. One that the user made keeps the length that the user gave.
        if entry_of(args) is not None or inner.waits_for_total_steps:
            inner.set_total_steps(state.max_steps)
        _warn_of_short_run(inner, state.max_steps)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Add the statistics of a grouping that has not been logged yet to a training log."""
        if not logs or "train_runtime" in logs or any(key.startswith("eval_") for key in logs):
            return
        inner = find_attribute(optimizer, "grouping_report")
        report = None if inner is None else inner.grouping_report
        if report is None or report.step == self._logged_step:
            return
        self._logged_step = report.step
        statistics = scale_statistics(report)
        logs.update(statistics)
        # The Trainer has copied `logs` to its history already.
        history = state.log_history
        if history and history[-1].get("step") == state.global_step:
            history[-1].update(statistics)


def _warn_of_short_run(optimizer: Any, steps: int) -> None:
    """Warn where an interval in steps is longer than the run, in which nothing would be scaled then."""
    keys = ("recluster_interval", "sgg_recluster_interval")
    intervals = [group[key] for group in optimizer.param_groups for key in keys if key in group]
    if intervals and all(isinstance(interval, int) and interval > steps for interval in intervals):
        warnings.warn(
            f"the run has {steps} steps, fewer than recluster_interval={min(intervals)}: no layer will be grouped, and "
            "nothing is scaled. Give recluster_interval as a fraction of the run, such as 0.05",
            UserWarning,
            stacklevel=2,
        )


def find_attribute(optimizer: Any, name: str) -> Any:
    """Return `optimizer`, or the nearest optimizer inside it, that has attribute `name`; None if there is none.

    accelerate and DeepSpeed hand out wrappers, with the wrapped one in `.optimizer`.
    """
    seen: list[Any] = []
    while optimizer is not None and not any(optimizer is one for one in seen):
        if hasattr(optimizer, name):
            return optimizer
        seen.append(optimizer)
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def scale_statistics(report: Any) -> dict[str, float]:
    """Return the scalars to log of a `GroupingReport`, over all layers, each cluster weighted by its elements.

    Keys: `sgg/scale_mean`, `sgg/scale_min`, `sgg/scale_max`, `sgg/scale_cluster_0` ... (the mean of each cluster,
    in order of centroids), `sgg/layers` (grouped layers) and `sgg/waiting_layers` (layers whose grouping waits for a
    finite momentum). Empty clusters count nowhere.
    """
    clusters: dict[int, list[tuple[int, float]]] = {}
    for layer in report.layers:
        for index, (count, scale) in enumerate(zip(layer.counts, layer.scales, strict=True)):
            if count > 0:
                clusters.setdefault(index, []).append((int(count), float(scale)))
    everything = [item for index in sorted(clusters) for item in clusters[index]]
    statistics: dict[str, float] = {}
    if everything:
        scales = [scale for _, scale in everything]
        statistics = {
            "sgg/scale_mean": _weighted_mean(everything),
            "sgg/scale_min": min(scales),
            "sgg/scale_max": max(scales),
        }
        for index in sorted(clusters):
            statistics[f"sgg/scale_cluster_{index}"] = _weighted_mean(clusters[index])
    statistics["sgg/layers"] = sum(len(layer.pooled) or 1 for layer in report.layers)
    statistics["sgg/waiting_layers"] = len(report.waiting)
    return statistics


def _weighted_mean(items: list[tuple[int, float]]) -> float:
    return sum(count * scale for count, scale in items) / sum(count for count, _ in items)
