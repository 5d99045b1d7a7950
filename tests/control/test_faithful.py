"""Guards against a faithful mode that improves on the paper: it has to be the listings, step by step."""

import json
import math
import shutil
import subprocess
import warnings

import pytest

from gradscale.control import ALSDGC
from gradscale.control.faithful import update_clipping_threshold, update_loss_scale

pytestmark = pytest.mark.filterwarnings("ignore:ALSDGC")

# The paper's C++ listing, with numbers read from the command line instead of written into main().
_LISTING = """
#include <cstdio>
#include <cstdlib>
double update_clipping_threshold(double current_threshold, double gradient_norm, double learning_rate,
                                 double adjustment_factor = 1.1) {
  if (gradient_norm > current_threshold * learning_rate) {
    return current_threshold * adjustment_factor;
  } else {
    return current_threshold / adjustment_factor;
  }
}
int main(int argc, char** argv) {
  double threshold = std::atof(argv[1]), rate = std::atof(argv[2]);
  for (int i = 3; i < argc; ++i) {
    threshold = update_clipping_threshold(threshold, std::atof(argv[i]), rate);
    std::printf("%.17g\\n", threshold);
  }
}
"""


def listed_loss_scale(loss_scale, growth_factor=2.0, shrink_factor=0.5, overflow=False):
    """The paper's Python listing."""
    if overflow:
        return max(loss_scale * shrink_factor, 1.0)
    return min(loss_scale * growth_factor, 2**16)


def test_the_listed_example_gives_1_1():
    assert update_clipping_threshold(1.0, 1.5, 0.1) == 1.1
    controller = ALSDGC("faithful")
    decision = controller.observe(norm=1.5, lr=0.1)
    assert decision.threshold == 1.0  # theta is updated after it has clipped
    assert controller.threshold == 1.1


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_threshold_follows_the_compiled_listing_bit_for_bit(tmp_path):
    norms = [1.5, 0.01, 0.3, 8.0, 0.0, 2.5, 0.11, 0.1, 0.09, 1e-9, 1e9] * 5
    source = tmp_path / "listing.cpp"
    source.write_text(_LISTING)
    subprocess.run(["g++", "-O0", "-ffp-contract=off", "-o", tmp_path / "listing", source], check=True)
    printed = subprocess.run(
        [tmp_path / "listing", "1.0", "0.1", *map(repr, norms)], check=True, capture_output=True, text=True
    ).stdout.split()
    controller = ALSDGC("faithful")
    thresholds = []
    for norm in norms:
        controller.observe(norm=norm, lr=0.1)
        thresholds.append(controller.threshold)
    assert thresholds == [float(text) for text in printed]


def test_the_loss_scale_follows_the_listing():
    overflows = [False] * 20 + [True] * 25 + [False, True] * 4
    controller = ALSDGC("faithful", loss_scale=1024.0)
    expected = 1024.0
    for overflow in overflows:
        expected = listed_loss_scale(expected, overflow=overflow)
        decision = controller.observe(norm=math.nan if overflow else 1.0, found_inf=overflow, lr=1e-3)
        assert decision.loss_scale == expected
        assert decision.skip == overflow
    assert (controller.summary()["lowest_scale"], controller.summary()["highest_scale"]) == (1.0, 65536.0)
    assert update_loss_scale(3.0, growth_factor=4.0) == listed_loss_scale(3.0, growth_factor=4.0)


def test_a_skipped_step_leaves_the_threshold():
    controller = ALSDGC("faithful", loss_scale=8.0)
    controller.observe(norm=3.0, lr=0.1)
    before = controller.threshold
    assert controller.observe(norm=math.inf, lr=0.1).reason == "overflow"
    assert controller.observe(norm=2.0, found_inf=True, lr=0.1).skip
    assert controller.threshold == before


def test_the_threshold_goes_to_norm_over_rate_so_that_nothing_is_clipped():
    controller = ALSDGC("faithful")
    decisions = [controller.observe(norm=2.0, lr=1e-3) for _ in range(200)]
    assert 2.0 / 1e-3 / 1.1 <= controller.threshold <= 2.0 / 1e-3 * 1.1
    assert {decision.reason for decision in decisions[:3]} == {"clipped"}
    assert {decision.reason for decision in decisions[100:]} == {""}


def test_each_group_has_its_own_threshold():
    controller = ALSDGC("faithful")
    for _ in range(10):
        decision = controller.observe(norm=2.0, lr=1.0, group_norms=[2.0, 0.5])
    alone = [ALSDGC("faithful"), ALSDGC("faithful")]
    for one, norm in zip(alone, (2.0, 0.5), strict=True):
        for _ in range(9):
            one.observe(norm=norm, lr=1.0)
    assert decision.group_thresholds == tuple(one.threshold for one in alone)


def test_the_learning_rate_is_needed():
    with pytest.raises(ValueError, match="give lr"):
        ALSDGC("faithful").observe(norm=1.0)


def test_a_threshold_without_bound_still_makes_json():
    controller = ALSDGC("faithful", adjustment_factor=1e100)
    for _ in range(5):
        controller.observe(norm=1.0, lr=0.0)
    assert controller.threshold == math.inf
    assert controller.observe(norm=1.0, lr=0.0).coefficient(1.0) == 1.0
    restored = ALSDGC("faithful", adjustment_factor=1e100)
    restored.load_state_dict(json.loads(json.dumps(controller.state_dict(), allow_nan=False)))
    assert restored.threshold == math.inf


@pytest.mark.filterwarnings("default:ALSDGC")
def test_the_mode_warns_once_at_construction():
    with pytest.warns(UserWarning, match="for comparison") as caught:
        controller = ALSDGC("faithful")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller.observe(norm=1.0, lr=0.1)
        ALSDGC()
