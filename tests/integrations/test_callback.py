"""The callback: scale statistics reach logs, history and trackers once per grouping, and no other log."""

from types import SimpleNamespace

import pytest

from gradscale.integrations.callback import ScaleCallback, scale_statistics
from gradscale.optim.report import GroupingReport, LayerReport


def layer(counts, scales):
    n = len(counts)
    return LayerReport("w", sum(counts), tuple(counts), (0.0,) * n, (0.0,) * n, tuple(scales))


def report(step=3, layers=None, waiting=()):
    layers = (layer([3, 1], [1.0, 2.0]), layer([1, 0], [4.0, 9.0])) if layers is None else layers
    return GroupingReport(step, 0.1, layers, waiting)


class Scaled:
    def __init__(self, total_steps="deferred"):
        self.param_groups = [{"total_steps": total_steps}]
        self.grouping_report = None

    @property
    def waits_for_total_steps(self):
        return self.param_groups[0]["total_steps"] == "deferred"

    def set_total_steps(self, n):
        self.param_groups[0]["total_steps"] = n


ARGS = SimpleNamespace(optim="adamw_torch")


def log(callback, optimizer, logs, step=3):
    state = SimpleNamespace(global_step=step, log_history=[{**logs, "step": step}])
    callback.on_log(ARGS, state, None, logs=logs, optimizer=optimizer)
    assert state.log_history[-1] == {**logs, "step": step}
    return logs


def test_statistics_weigh_elements_and_skip_empty_clusters():
    assert scale_statistics(report(waiting=("a", "b"))) == {
        "sgg/scale_mean": pytest.approx((3 * 1 + 1 * 2 + 1 * 4) / 5),
        "sgg/scale_min": 1.0,
        "sgg/scale_max": 4.0,
        "sgg/scale_cluster_0": pytest.approx((3 * 1 + 1 * 4) / 4),
        "sgg/scale_cluster_1": 2.0,
        "sgg/layers": 2,
        "sgg/waiting_layers": 2,
    }


def test_statistics_when_every_layer_waits():
    assert scale_statistics(report(layers=(), waiting=("a",))) == {"sgg/layers": 0, "sgg/waiting_layers": 1}


def test_logged_once_per_grouping():
    callback, optimizer = ScaleCallback(), Scaled()
    assert log(callback, optimizer, {"loss": 1.0}) == {"loss": 1.0}
    optimizer.grouping_report = report(step=3)
    assert "sgg/scale_mean" in log(callback, optimizer, {"loss": 1.0})
    assert log(callback, optimizer, {"loss": 1.0}) == {"loss": 1.0}
    optimizer.grouping_report = report(step=6)
    assert "sgg/scale_mean" in log(callback, optimizer, {"loss": 1.0})


def test_only_training_logs():
    callback, optimizer = ScaleCallback(), Scaled()
    optimizer.grouping_report = report()
    for logs in ({"eval_loss": 1.0}, {"train_runtime": 1.0, "train_loss": 1.0}, {}):
        assert log(callback, optimizer, dict(logs)) == logs
    assert "sgg/layers" in log(callback, optimizer, {"loss": 1.0})


def test_history_of_another_step_is_not_touched():
    callback, optimizer = ScaleCallback(), Scaled()
    optimizer.grouping_report = report()
    state = SimpleNamespace(global_step=4, log_history=[{"loss": 2.0, "step": 3}])
    callback.on_log(ARGS, state, None, logs={"loss": 1.0}, optimizer=optimizer)
    assert state.log_history == [{"loss": 2.0, "step": 3}]


def test_inside_wrappers():
    optimizer = Scaled()
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer))
    callback = ScaleCallback()
    callback.on_train_begin(ARGS, SimpleNamespace(max_steps=9), None, optimizer=wrapped)
    assert optimizer.param_groups == [{"total_steps": 9}]
    optimizer.grouping_report = report()
    assert "sgg/layers" in log(callback, wrapped, {"loss": 1.0})


def test_foreign_optimizers_are_ignored():
    circular = SimpleNamespace()
    circular.optimizer = circular
    for optimizer in (None, SimpleNamespace(), circular):
        callback = ScaleCallback()
        callback.on_train_begin(ARGS, SimpleNamespace(max_steps=9), None, optimizer=optimizer)
        assert log(callback, optimizer, {"loss": 1.0}) == {"loss": 1.0}


@pytest.mark.parametrize(
    ("optim", "given", "expected"),
    [
        ("adamw_torch", "deferred", 9),
        ("adamw_torch", 5, 5),  # the user's own optimizer
        ("adamw_torch", None, None),
        ("sgg_adamw", 5, 9),  # ours, from a checkpoint of a shorter run
    ],
)
def test_run_length(optim, given, expected):
    optimizer = Scaled(given)
    ScaleCallback().on_train_begin(
        SimpleNamespace(optim=optim), SimpleNamespace(max_steps=9), None, optimizer=optimizer
    )
    assert optimizer.param_groups == [{"total_steps": expected}]
