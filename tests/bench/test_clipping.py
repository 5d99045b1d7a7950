"""Guards against a comparison that is unfair: rules that are not the ones named, and numbers that do not mean it."""

import math

import pytest

from gradscale.bench import bad_batches, clip_traces, clipping
from gradscale.bench.peers.clipping import Answer, Installed, ZClip, clip_rules

RULES = clip_rules(packages=False)


def applied(name, norms, loss=2.0):
    rule = RULES[name][0]()
    answers = [rule(norm, loss) for norm in norms]
    return [math.nan if answer.skip else norm * answer.coefficient for norm, answer in zip(norms, answers, strict=True)]


def test_no_clipping_and_a_fixed_threshold_do_what_they_say():
    assert applied("none", [0.5, 50.0]) == [0.5, 50.0]
    assert applied("fixed 1.0", [0.5, 50.0]) == pytest.approx([0.5, 1.0], rel=1e-5)


def test_autoclip_clips_to_a_percentile_of_all_norms():
    norms = [float(one) for one in range(11, 0, -1)]
    assert applied("AutoClip(10)", norms)[-1] == pytest.approx(1.0)  # the 10th percentile of 1..11 is 2
    assert applied("AutoClip(10)", [*norms, 5.0])[-1] == pytest.approx(2.1, rel=1e-5)  # of 1..11 and 5


def test_zclip_clips_the_harder_the_larger_and_is_poisoned_by_one_nan():
    usual = [1.0, 1.2] * 30
    small, large = (applied("ZClip", [*usual, spike])[-1] for spike in (2.0, 50.0))
    assert 1.0 < large < small < 1.5
    rule = ZClip()
    for norm in [*usual, math.nan]:
        rule(norm, 2.0)
    assert rule(50.0, 2.0).coefficient == 1.0  # compared with NaN, nothing is a spike any more


def test_adagc_follows_an_average_of_what_it_let_through():
    norms = applied("AdaGC", [0.5] * 200 + [50.0])
    assert norms[-1] == pytest.approx(1.05 * 0.5, rel=1e-4)


def test_skip_step_skips_until_nan_has_left_its_window():
    rule = RULES["OLMo skip-step"][0]()
    clean = clip_traces.trace("one NaN", 0, 1000, 0.15)
    skips = [rule(norm, loss).skip for norm, loss in zip(clean.norms, clean.losses, strict=True)]
    assert sum(skips) == 129


def test_the_guard_never_learns_what_it_has_clipped():
    assert applied("median/MAD guard", [1.0, 1.1] * 50 + [4.0] * 300)[-1] < 2.0


def test_an_installed_clipper_is_shown_the_norm():
    class Halving:
        def __init__(self, model):
            self.model = model

        def __call__(self):
            self.model.weight.grad.mul_(0.5)

    assert Installed(Halving)(3.0, 1.0) == Answer(0.5)


def test_rules_say_where_they_are_from():
    assert all(source for _, source in clip_rules().values())
    assert "formula" in RULES["ZClip"][1]


def test_the_goals_on_traces_are_met():
    robust = clip_traces.summarize(RULES["ALSDGC robust"][0], seeds=2, steps=1500, noise=0.15)
    assert robust["clean_clipped"] <= 0.01
    assert robust["spike_over_median"] <= 2
    assert robust["bad_over_median"] <= 2
    assert robust["recovery_steps"] <= 20
    assert (robust["nan_steps_applied"], robust["good_steps_skipped_after_nan"]) == (0, 0)
    none = clip_traces.summarize(RULES["none"][0], seeds=2, steps=1500, noise=0.15)
    assert none["spike_over_median"] > 40
    assert none["nan_steps_applied"] == 1
    zclip = clip_traces.summarize(RULES["ZClip"][0], seeds=2, steps=1500, noise=0.15)
    assert zclip["recovery_steps"] is None


def test_training_is_the_same_for_the_same_seed_and_rule():
    make = RULES["fixed 1.0"][0]
    first, again = (bad_batches.train(make, seed=1, lr=1e-3, steps=3, bad=0.5) for _ in range(2))
    assert first == again
    assert first != bad_batches.train(make, seed=2, lr=1e-3, steps=3, bad=0.5)
    assert 4.0 < first < 6.0


def test_the_table_names_every_rule_and_the_worst_values():
    entry = clip_traces.summarize(RULES["none"][0], seeds=1, steps=700, noise=0.15)
    entry |= {"rule": "none", "source": "nowhere", "seconds_per_step": 1e-4, "losses": {"0.001": [1.0, math.inf]}}
    text = clipping.text({"results": [entry]})
    assert "nowhere" in text and "lr 0.001" in text and "0.100 ms" in text
    assert text.split("lr 0.001")[1].split("clipped:")[0].strip().endswith("NaN")
