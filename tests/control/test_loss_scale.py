"""Guards against a loss scale that bad data drives to its floor, or that loses steps to a ceiling again and again."""

import random

import pytest

from gradscale.control import ALSDGC


def simulate(ceiling, *, steps, seed=0, bad_loss=0.0, bad_gradient=0.0, **options):
    """Return controller, overflow skips and the scale after each step, where gradients overflow above ceiling(step)."""
    rng = random.Random(seed)
    controller = ALSDGC(loss_scale=2.0**16, **options)
    lost, scales = 0, []
    for step in range(steps):
        nan_loss = rng.random() < bad_loss
        found_inf = nan_loss or controller.loss_scale > ceiling(step) or rng.random() < bad_gradient
        decision = controller.observe(norm=1.0, loss=float("nan") if nan_loss else 2.0, found_inf=found_inf)
        lost += decision.reason.startswith("overflow")
        scales.append(controller.loss_scale)
    return controller, lost, scales


@pytest.mark.parametrize("exponent", [4.5, 11.5, 15.9, 20.2])
def test_the_scale_finds_the_ceiling_and_loses_few_steps(exponent):
    controller, lost, scales = simulate(lambda step: 2.0**exponent, steps=20_000)
    assert lost <= 0.0015 * 20_000 + 16
    assert all(2.0 ** (exponent - 2) <= scale for scale in scales[2000:])
    assert controller.loss_scale <= 2.0**exponent * 2


def test_bad_losses_cost_nothing_but_themselves():
    _, without, scales = simulate(lambda step: 2.0**12.5, steps=20_000)
    _, lost, with_bad = simulate(lambda step: 2.0**12.5, steps=20_000, bad_loss=0.005)
    assert lost <= without + 2
    assert min(with_bad) == min(scales)


@pytest.mark.parametrize("seed", range(3))
def test_bad_gradients_that_nobody_explains_do_not_drive_the_scale_to_its_floor(seed):
    _, _, scales = simulate(lambda step: 2.0**12.5, steps=20_000, bad_gradient=0.005, seed=seed)
    assert min(scales) >= 2.0**6
    assert min(scales[-100:]) >= 2.0**9


def test_a_ceiling_that_falls_is_followed_in_as_many_steps_as_bits_and_one():
    controller, lost, _ = simulate(
        lambda step: 2.0**16.5 if step < 100 else 2.0**10.5, steps=120, max_loss_scale=2.0**16
    )
    assert lost == 7
    assert controller.loss_scale == 2.0**10


def test_a_single_overflow_is_forgiven_once_per_interval():
    controller, lost, _ = simulate(lambda step: 0.0 if step in (100, 140) else 1e9, steps=150, max_loss_scale=2.0**16)
    assert (lost, controller.loss_scale) == (2, 2.0**15)
    controller, lost, _ = simulate(lambda step: 0.0 if step in (100, 151) else 1e9, steps=160, max_loss_scale=2.0**16)
    assert (lost, controller.loss_scale) == (2, 2.0**16)
    assert controller.summary()["skipped"] == {"overflow forgiven": 2}


def test_an_overflow_right_after_growth_is_not_forgiven_and_growth_there_waits():
    controller, _, scales = simulate(lambda step: 2.0**16.5, steps=3000)
    changes = [step for step in range(1, 3000) if scales[step] != scales[step - 1]]
    assert changes[:2] == [49, 50]
    assert changes[2] - changes[1] == 2000


def test_the_scale_never_leaves_its_bounds_and_never_raises():
    controller, lost, scales = simulate(lambda step: 0.0, steps=100, min_loss_scale=4.0)
    assert (lost, scales[-1]) == (100, 4.0)
    _, _, scales = simulate(lambda step: 1e30, steps=2000, max_loss_scale=2.0**20 * 1.5)
    assert scales[-1] == 2.0**20 * 1.5


def test_raise_after_gives_up_at_the_floor_and_not_before():
    controller = ALSDGC(loss_scale=4.0, min_loss_scale=2.0, raise_after=3)
    for _ in range(3):
        controller.observe(norm=None, found_inf=True)
    with pytest.raises(FloatingPointError, match="min_loss_scale=2"):
        controller.observe(norm=None, found_inf=True)
    assert (controller.steps, controller.skipped) == (4, 4)


def test_a_norm_that_is_not_finite_is_an_overflow_too():
    controller = ALSDGC(loss_scale=4.0)
    assert controller.observe(norm=float("inf"), loss=2.0).reason == "overflow"
    assert controller.loss_scale == 2.0


def test_without_a_loss_scale_there_is_none_in_any_decision():
    controller = ALSDGC()
    assert controller.observe(norm=1.0).loss_scale is None
    assert controller.observe(norm=None, found_inf=True).loss_scale is None
    assert controller.loss_scale is None
