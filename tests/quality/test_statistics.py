"""The numbers of a report, against ones that were worked out by hand, and scipy's."""

import math

import pytest
from scipy import stats

from gradscale.quality.statistics import Interval, best_learning_rate, interval, lines


def result(*losses, seconds=10.0, status="finished"):
    """A run with equal times between its measurements."""
    count = len(losses)
    curve = [(10 * (n + 1), seconds * (n + 1) / count, loss) for n, loss in enumerate(losses)]
    loss = losses[-1] if status == "finished" else None
    return {"status": status, "validation_loss": loss, "curve": curve, "seconds": seconds, "groupings": []}


@pytest.mark.parametrize("count", [2, 3, 5, 12, 16, 20, 30, 61, 200])
def test_intervals_are_students_and_never_narrower(count):
    values = [math.sin(7 * n) for n in range(count)]
    mine = interval(values)
    low, high = stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=stats.sem(values))
    assert mine.mean == pytest.approx((low + high) / 2)
    assert 0.9997 <= mine.half / ((high - low) / 2) < (1.0003 if count <= 16 else 1.025)


def test_one_number_has_no_interval_and_a_diverged_one_no_mean():
    assert math.isnan(interval([1.0]).half) and interval([1.0, math.inf]).mean == math.inf
    assert Interval(-0.02, 0.01).clear_of_zero and not Interval(-0.02, 0.03).clear_of_zero
    assert not Interval(-0.02, math.nan).clear_of_zero


RESULTS = {
    ("base", 1e-3, 1): result(3.0, 2.0),
    ("base", 2e-3, 1): result(3.0, 2.2),
    ("base", 1e-3, 11): result(3.0, 2.5, 2.0),
    ("base", 1e-3, 12): result(3.1, 2.6, 2.1),
    ("fast", 1e-3, 1): result(3.0, 1.9),
    ("fast", 2e-3, 1): result(9.0, status="diverged"),
    ("fast", 1e-3, 11): result(2.55, 2.05, 1.8, seconds=20.0),
    ("fast", 1e-3, 12): result(2.65, 2.05, 1.9, seconds=20.0),
}


def table(results):
    found = lines(
        results,
        {"base": (1e-3, 2e-3), "fast": (1e-3, 2e-3)},
        "base",
        seeds=(11, 12),
        select_seeds=(1,),
        know_nothing=5.0,
    )
    return {line.arm: line for line in found}


def test_an_optimizer_is_measured_at_its_best_rate_on_seeds_that_did_not_choose_it():
    fast = table(RESULTS)["fast"]
    assert fast.best_lr == 1e-3 and fast.loss.mean == pytest.approx(1.85)
    assert fast.difference.mean == pytest.approx(-0.2) and fast.difference.half == pytest.approx(0, abs=1e-6)
    assert (fast.diverged, fast.runs) == (1, 4)


def test_equal_time_is_read_off_the_curve():
    # Half of the steps in the baseline's time: halfway between the first and the second measurement.
    at_equal_time = table(RESULTS)["fast"].difference_at_equal_time
    assert at_equal_time.mean == pytest.approx(((2.55 + 2.05) / 2 - 2.0 + (2.65 + 2.05) / 2 - 2.1) / 2)


def test_steps_to_the_baselines_loss_are_read_off_the_mean_curve():
    # The mean curve is 2.6, 2.05, 1.85, and the baseline ends at 2.05.
    assert table(RESULTS)["fast"].steps_to_baseline == pytest.approx(20 / 30)
    worse = {**RESULTS, ("fast", 1e-3, 11): result(3.0, 2.9, 2.8)}
    assert table(worse)["fast"].steps_to_baseline == math.inf


def test_robustness_counts_a_diverged_rate_as_knowing_nothing():
    found = table(RESULTS)
    assert found["fast"].near_best == (1, 2) and found["fast"].area == pytest.approx((1.9 + 5.0) / 2)
    assert found["base"].near_best == (1, 2) and found["base"].area == pytest.approx(2.1)


def test_an_optimizer_with_missing_cells_has_no_line():
    some = {key: value for key, value in RESULTS.items() if key != ("fast", 2e-3, 1)}
    assert best_learning_rate(some, "fast", (1e-3, 2e-3), (1,)) is None
    assert set(table(some)) == {"base"}
