"""Guards against a threshold that bad data moves, that never recovers, or that clips what is ordinary."""

import math
import random
import time

import pytest

from gradscale.control import ALSDGC, Decision
from tests.control.traces import lognormal, play, troubled


def statistics(controller):
    """What the clip threshold is made of."""
    rules = controller.state_dict()["rules"]
    return rules["window"], rules["groups"], rules["losses"]


def warmed(seed=0, **options):
    controller = ALSDGC(**options)
    rng = random.Random(seed + 1)
    for norm in lognormal(seed, 300):
        controller.observe(norm=norm, loss=rng.gauss(2.0, 0.05))
    return controller


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_and_scales_stay_within_bounds_whatever_comes(seed):
    options = {"min_threshold": 0.3, "max_threshold": 4.0, "min_loss_scale": 16.0, "max_loss_scale": 2.0**12}
    controller = ALSDGC(loss_scale=256.0, **options)
    for decision in play(controller, troubled(seed, steps=1500)):
        assert 0.3 <= decision.threshold <= 4.0
        assert 16.0 <= decision.loss_scale <= 2.0**12


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf])
def test_one_step_that_is_not_finite_is_one_skip_and_moves_nothing(norm):
    controller = warmed()
    before = statistics(controller)
    bad = controller.observe(norm=norm if norm > 0 or norm != norm else math.inf, loss=2.0)
    assert (bad.skip, bad.reason) == (True, "non-finite norm")
    assert statistics(controller) == before
    assert not any(controller.observe(norm=one, loss=2.0).skip for one in lognormal(1, 200))
    assert controller.skipped == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("found_inf", [False, True])
def test_a_loss_that_is_not_finite_skips_and_keeps_the_scale(loss, found_inf):
    controller = warmed(loss_scale=1024.0)
    before = controller.state_dict()["rules"]
    decision = controller.observe(norm=1.0, loss=loss, found_inf=found_inf)
    assert (decision.skip, decision.reason) == (True, "non-finite loss")
    assert controller.state_dict()["rules"] == before


def test_a_group_that_is_not_finite_skips_the_step():
    controller = ALSDGC()
    assert controller.observe(norm=1.0, group_norms=[1.0, math.nan]).skip


def test_without_norm_or_loss_nothing_is_learned():
    controller = warmed()
    before = statistics(controller)
    for norm in (None, -1.0):  # DeepSpeed's word for a norm that it does not know
        decision = controller.observe(norm=norm)
        assert not decision.skip
        assert decision.threshold == controller.threshold
    assert statistics(controller) == before


def test_zero_norms_are_taken_and_say_nothing():
    controller = warmed()
    before = statistics(controller)
    decisions = [controller.observe(norm=0.0) for _ in range(200)]
    assert statistics(controller) == before
    assert {(decision.skip, decision.coefficient(0.0)) for decision in decisions} == {(False, 1.0)}
    assert ALSDGC().observe(norm=0.0).threshold == 1.0


@pytest.mark.parametrize("norm", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_constant_norms_are_never_clipped_after_the_warmup(norm):
    controller = ALSDGC()
    decisions = [controller.observe(norm=norm) for _ in range(300)]
    assert all(decision.reason == "" for decision in decisions[20:])
    assert norm < controller.threshold < 1.3 * norm


def test_the_first_steps_have_the_fixed_threshold():
    controller = ALSDGC(warmup_steps=10, warmup_threshold=0.7)
    decisions = [controller.observe(norm=norm) for norm in [0.5, 3.0] * 5]
    assert {decision.threshold for decision in decisions} == {0.7}
    assert [decision.reason for decision in decisions[:2]] == ["warmup", "clipped"]
    assert controller.observe(norm=1.0).threshold != 0.7


@pytest.mark.parametrize("sd", [0.05, 0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("median", [1e-3, 1.0, 50.0])
def test_clean_norms_are_hardly_ever_clipped(sd, median):
    controller = ALSDGC(warmup_threshold=1e6)
    norms = [median * norm * math.exp(-step / 3000) for step, norm in enumerate(lognormal(3, 5000, sd=sd))]
    for norm in norms:
        controller.observe(norm=norm)
    assert controller.summary()["clipped"] <= 0.01 * len(norms)
    assert controller.summary()["reseeds"] == 0


@pytest.mark.parametrize("rate", [1 / 100, 1 / 30])
def test_spikes_move_the_threshold_little(rate):
    rng = random.Random(5)
    clean, spiked = ALSDGC(), ALSDGC()
    applied = []
    for norm in lognormal(4, 4000):
        clean.observe(norm=norm)
        spike = 50 * norm if rng.random() < rate else norm
        decision = spiked.observe(norm=spike)
        if clean.steps > 20 and spike != norm:
            applied.append(spike * decision.coefficient(spike))
    assert len(applied) > 20
    assert max(applied) <= 1.5
    assert spiked.threshold == pytest.approx(clean.threshold, rel=0.2)


@pytest.mark.parametrize("factor", [4.0, 10.0, 0.25])
@pytest.mark.parametrize("sd", [0.05, 0.15, 0.25])
def test_a_lasting_shift_is_followed_within_20_steps(factor, sd):
    for seed in range(10):
        controller = ALSDGC()
        play(controller, [(norm, None, False) for norm in lognormal(seed, 500, sd=sd)])
        after = [controller.observe(norm=factor * norm) for norm in lognormal(seed + 100, 100, sd=sd)]
        assert factor <= after[20].threshold <= factor * math.exp(6 * max(sd, 0.08))
        clipped = sum(decision.reason == "clipped" for decision in after[20:])
        assert clipped <= 5
        assert controller.summary()["reseeds"] == 1


def test_a_lasting_shift_of_norm_and_loss_costs_three_skips():
    controller = warmed()
    decisions = [controller.observe(norm=40 * norm, loss=9.0) for norm in lognormal(8, 40, sd=0.05)]
    assert [decision.reason for decision in decisions[:4]] == ["outlier"] * 3 + ["clipped"]
    assert sum(decision.skip for decision in decisions) == 3
    assert decisions[22].threshold > 40


@pytest.mark.parametrize("per_step", [0.002, -0.002, 0.005])
def test_a_slow_drift_is_followed(per_step):
    controller = ALSDGC()
    clipped = []
    for step, norm in enumerate(lognormal(9, 3000, sd=0.15)):
        clipped.append(controller.observe(norm=norm * math.exp(per_step * step)).reason == "clipped")
    assert sum(clipped[20:]) <= 0.03 * len(clipped)
    level = math.exp(per_step * 3000)
    assert level * 0.8 <= controller.threshold <= level * 2.5


def test_an_extreme_norm_with_an_extreme_loss_is_skipped_and_forgotten():
    controller = warmed()
    before = statistics(controller)
    assert controller.observe(norm=60.0, loss=2.0).reason == "clipped"  # one witness is not enough
    controller = warmed()
    assert controller.observe(norm=1.0, loss=9.0).reason == ""
    controller = warmed()
    for _ in range(3):
        decision = controller.observe(norm=60.0, loss=9.0)
        assert (decision.skip, decision.reason) == (True, "outlier")
    assert statistics(controller) == before
    assert not controller.observe(norm=60.0, loss=9.0).skip
    assert not controller.observe(norm=60.0, loss=9.0).skip  # not three more
    controller.observe(norm=1.0, loss=2.0)
    assert controller.observe(norm=60.0, loss=9.0).skip
    assert not warmed(max_skips=0).observe(norm=60.0, loss=9.0).skip


def test_groups_have_their_own_thresholds_and_share_the_skips():
    together, alone = ALSDGC(), [ALSDGC(), ALSDGC()]
    pairs = list(zip(lognormal(1, 200), lognormal(2, 200, median=30.0, sd=0.1), strict=True))
    for first, second in pairs:
        decision = together.observe(norm=math.hypot(first, second), group_norms=[first, second])
        expected = tuple(one.observe(norm=norm).threshold for one, norm in zip(alone, (first, second), strict=True))
        assert decision.group_thresholds == expected
    before = statistics(together)
    skipped = together.observe(norm=math.nan, group_norms=[1.0, math.nan])
    assert skipped.group_thresholds == tuple(one.threshold for one in alone)
    assert statistics(together) == before
    assert together.observe(norm=31.0, group_norms=[20.0, 30.0]).reason == "clipped"
    with pytest.raises(ValueError, match="group_norms has 3 norms, expected 2"):
        together.observe(norm=1.0, group_norms=[1.0, 1.0, 1.0])


def test_the_further_beyond_the_threshold_the_harder_it_clips():
    controller = warmed()
    state = controller.state_dict()
    applied = []
    for norm in (controller.threshold, 3.0, 10.0, 100.0, 1e6):
        controller.load_state_dict(state)
        applied.append(norm * controller.observe(norm=norm).coefficient(norm))
    assert applied == sorted(applied, reverse=True)
    assert applied[-1] > 0.9  # never below what is usual


def test_the_coefficient_is_that_of_torch():
    import torch

    for norm, threshold in [(2.0, 1.0), (0.5, 1.0), (3.0, math.inf)]:
        param = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        param.grad = torch.tensor([norm], dtype=torch.float64)
        torch.nn.utils.clip_grad_norm_([param], threshold)
        decision = Decision(threshold, None, False, "")
        assert norm * decision.coefficient(norm) == pytest.approx(param.grad.item(), rel=1e-6)
    assert Decision(1e-9, None, False, "").coefficient(1e-9) == 1.0  # torch: 1e-3
    assert Decision(1.0, None, True, "").coefficient(math.nan) == 0.0


def test_tensors_and_arrays_are_taken_for_their_value():
    import numpy
    import torch

    plain, other = ALSDGC(), ALSDGC()
    for norm in lognormal(0, 50):
        exact = torch.tensor(norm, dtype=torch.float64)
        expected = plain.observe(norm=norm, loss=norm, group_norms=[norm])
        got = other.observe(norm=exact, loss=numpy.float64(norm), found_inf=torch.tensor(False), group_norms=[exact])
        assert got == expected
    assert type(other.threshold) is float
    assert other.state_dict() == plain.state_dict()


def test_a_step_costs_less_than_a_fifth_of_a_millisecond():
    controller = warmed(loss_scale=1024.0)
    norms = lognormal(0, 500)
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        for norm in norms:
            controller.observe(norm=norm, loss=2.0)
        best = min(best, (time.process_time() - start) / len(norms))
    assert best < 0.2e-3
