"""Guards against a resumed run that differs, and against damaged state that is half loaded."""

import copy
import json
import math

import pytest

from gradscale.control import ALSDGC
from tests.control.traces import play, troubled

pytestmark = pytest.mark.filterwarnings("ignore:ALSDGC")


def through_json(controller):
    return json.loads(json.dumps(controller.state_dict(), allow_nan=False))


@pytest.mark.parametrize("mode", ["robust", "faithful"])
@pytest.mark.parametrize("norm_type", [2.0, "inf"])
def test_a_restart_at_any_step_decides_the_same_bit_for_bit(mode, norm_type):
    options = {"norm_type": norm_type, "loss_scale": 1024.0}
    trace = troubled(3, steps=240)
    whole = ALSDGC(mode, **options)
    expected = play(whole, trace, lr=0.1)
    for stop in range(0, 240, 7):
        first, second = ALSDGC(mode, **options), ALSDGC(mode, **options)
        play(first, trace[:stop], lr=0.1)
        second.load_state_dict(through_json(first))
        assert second.state_dict() == first.state_dict()
        assert play(second, trace[stop:], lr=0.1) == expected[stop:]
        assert through_json(second) == through_json(whole)


def test_group_windows_are_restored():
    first, second = ALSDGC(), ALSDGC()
    for step in range(60):
        first.observe(norm=1.0 + step % 7, group_norms=[1.0 + step % 5, 2.0 + step % 3])
    second.load_state_dict(through_json(first))
    for controller in (first, second):
        decision = controller.observe(norm=9.0, group_norms=[9.0, 9.0])
    assert decision.group_thresholds is not None
    assert second.state_dict() == first.state_dict()


def test_the_state_is_not_shared_with_the_controller():
    controller = ALSDGC()
    state = controller.state_dict()
    before = copy.deepcopy(state)
    play(controller, troubled(0, steps=50))
    assert state == before
    other = ALSDGC()
    other.load_state_dict(state)
    play(other, troubled(0, steps=50))
    assert state == before


def test_state_loads_under_weights_only(tmp_path):
    import torch

    controller = ALSDGC(loss_scale=8.0)
    play(controller, troubled(0, steps=50))
    torch.save(controller.state_dict(), tmp_path / "state.pt")
    other = ALSDGC(loss_scale=8.0)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_dict() == controller.state_dict()


def test_options_may_differ_after_a_restart():
    first = ALSDGC(loss_scale=2.0**16)
    play(first, troubled(1, steps=300))
    shorter = ALSDGC(window=32, loss_scale=4.0, max_loss_scale=16.0)
    shorter.load_state_dict(through_json(first))
    assert shorter.state_dict()["rules"]["window"]["logs"] == first.state_dict()["rules"]["window"]["logs"][-32:]
    assert shorter.loss_scale == 16.0
    without = ALSDGC()
    without.load_state_dict(through_json(first))
    assert (without.loss_scale, without.threshold) == (None, first.threshold)
    again = ALSDGC(loss_scale=32.0)
    again.load_state_dict(through_json(without))
    assert again.loss_scale == 32.0


def damaged(state, path, value):
    state = copy.deepcopy(state)
    place = state
    for key in path[:-1]:
        place = place[key]
    if value is None and path[-1] in place:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return state


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("version",), 2, "version"),
        (("mode",), "faithful", "mode"),
        (("norm_type",), 1.0, "norm_type"),
        (("norm_type",), "two", "norm_type"),
        (("rules",), None, "rules"),
        (("rules",), [], "rules"),
        (("more",), 1, "more"),
        (("rules", "window"), None, "window"),
        (("rules", "window", "logs"), None, "logs"),
        (("rules", "window", "logs"), "1", "logs"),
        (("rules", "window", "logs"), [], "logs"),
        (("rules", "window", "logs", 3), math.nan, "logs"),
        (("rules", "window", "logs", 3), "x", "logs"),
        (("rules", "window", "sides"), [2], "sides"),
        (("rules", "window", "sides"), [], "sides"),
        (("rules", "window", "warm"), 1, "warm"),
        (("rules", "groups"), 3, "groups"),
        (("rules", "groups"), [3], "groups"),
        (("rules", "losses", "losses", 0), math.inf, "losses"),
        (("rules", "loss_scale", "scale"), 0.0, "scale"),
        (("rules", "loss_scale", "scale"), True, "scale"),
        (("rules", "loss_scale", "failed"), -1.0, "failed"),
        (("rules", "loss_scale", "good"), 1.5, "good"),
        (("rules", "skips"), -1, "skips"),
        (("counters", "steps"), None, "steps"),
        (("counters", "clipped"), 10**9, "clipped"),
        (("counters", "skipped"), {"bored": 1}, "bored"),
        (("counters", "skipped"), 3, "skipped"),
        (("counters", "lowest_scale"), "low", "lowest_scale"),
    ],
)
def test_damaged_state_is_refused_by_name_and_nothing_changes(path, value, named):
    saved, controller = ALSDGC(loss_scale=64.0), ALSDGC(loss_scale=8.0)
    play(saved, troubled(2, steps=100))
    play(controller, troubled(5, steps=100))
    before = controller.state_dict()
    with pytest.raises(ValueError, match=named):
        controller.load_state_dict(damaged(saved.state_dict(), path, value))
    assert controller.state_dict() == before


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("rules", "threshold"), -1.0, "threshold"),
        (("rules", "threshold"), "large", "threshold"),
        (("rules", "groups"), [math.nan], "groups"),
        (("rules", "loss_scale"), {}, "scale"),
    ],
)
def test_damaged_state_of_the_faithful_mode_is_refused_too(path, value, named):
    controller = ALSDGC("faithful", loss_scale=8.0)
    before = controller.state_dict()
    with pytest.raises(ValueError, match=named):
        controller.load_state_dict(damaged(before, path, value))
    assert controller.state_dict() == before


def test_what_is_no_state_is_refused():
    for state in (None, [], "state", {}):
        with pytest.raises(ValueError, match="state"):
            ALSDGC().load_state_dict(state)
