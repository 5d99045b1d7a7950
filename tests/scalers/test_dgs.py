"""A rate that jumps at a reset, a spike that its own level hides, or an overflow that quietly stops the run."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.scalers import dgs
from gradscale.scalers.dgs import (
    collective_importance,
    dgs_factor,
    spikes,
    sum_of_importance,
    take_importance,
    take_level,
    take_weight,
)
from tests.reference.dgs_reference import FORMS, ReferenceDGS

INF, NAN = math.inf, math.nan
# Two parameters with gradients 0.5 and -0.25, gamma 1/2 and sigma 1/8: G = 0.125 + (0.5 + 0.25) / 2 = 0.5, M = 0.375.
GOLDEN = {"collective": 0.5, "mean": 0.375, "beta": 2.0, "eps": 0.25, "bounds": (0.1, 10.0), "rate": 0.1}
FACTORS = {
    "equation": [0.1 * 2 / 0.5, 0.1 * 2 / 0.5],
    "importance": [0.1 / (0.5 + 0.25), 0.1 / (0.25 + 0.25)],
    "full": [0.1 * 2 / ((0.5 + 0.25) * 0.5), 0.1 * 2 / ((0.25 + 0.25) * 0.5)],
    "normalized": [0.1 * 0.375 / (0.5 + 0.25 * 0.375), 0.1 * 0.375 / (0.25 + 0.25 * 0.375)],
}


def scalar(number):
    return torch.tensor(number, dtype=torch.float64)


def as_tensors(options, dtype):
    make = lambda number: torch.tensor(number, dtype=dtype)  # noqa: E731
    return {
        name: tuple(map(make, value)) if isinstance(value, tuple) else make(value) for name, value in options.items()
    }


@pytest.mark.parametrize("kind", ["numbers", torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_golden_factors(form, kind):
    importance = torch.tensor([0.5, -0.25]).abs()
    found = dgs_factor(form, importance, **(GOLDEN if kind == "numbers" else as_tensors(GOLDEN, kind)))
    if form != "equation":
        assert found.dtype == torch.float32
    np.testing.assert_allclose(np.broadcast_to(found, 2), FACTORS[form], rtol=3e-7)
    assert importance.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("form", FORMS)
def test_numbers_and_tensors_give_the_same_bits_rounded_once_per_operation(form):
    importance = torch.rand(1000)
    number, tensor = (dgs_factor(form, importance, **o) for o in (GOLDEN, as_tensors(GOLDEN, torch.float64)))
    assert np.array_equal(number, tensor)
    rates = {"importance": 0.1, "full": 0.1 * 2 / 0.5}
    if form in rates:
        assert np.array_equal(number, np.float32(rates[form]) / (importance.numpy() + np.float32(0.25)))


@pytest.mark.parametrize("form", FORMS)
def test_a_running_sum_needs_no_division_by_its_weight(form):
    importance = torch.tensor([0.5, 0.25], dtype=torch.float64)
    found = dgs_factor(form, importance * 0.3, **GOLDEN, weight=0.3)
    np.testing.assert_allclose(np.broadcast_to(found, 2), FACTORS[form], rtol=1e-14)


def test_bounds_hold_the_normalized_factor():
    options = GOLDEN | {"mean": 1.0, "eps": 1e-8, "bounds": (0.5, 4.0), "rate": 0.25}
    found = dgs_factor("normalized", torch.tensor([0.0, 1e-3, 0.5, 1.0, 3.0, 1e30]), **options)
    assert found.tolist() == [1.0, 1.0, 0.5, 0.25, 0.125, 0.125]


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match="form='fulll'.*'normalized'"):
        dgs_factor("fulll", torch.ones(2), **GOLDEN)


@pytest.mark.parametrize(("keep", "total", "weight"), [
    (1.0, 0.75 * 0.125 + 0.25 * 1, 0.75 * 0.25 + 0.25),
    (0.1, 0.1 * 0.75 * 0.125 + 0.25 * 1, 0.1 * 0.75 * 0.25 + 0.25),
    (0.0, 0.25 * 1, 0.25),
])  # fmt: skip
@pytest.mark.parametrize("as_tensor", [False, True])
def test_golden_running_importance(keep, total, weight, as_tensor):
    """rho = 0.75, |g| = 0.5 and then 1: A = 0.25 * 0.5 = 0.125 and W = 0.25 before the second gradient."""
    decay, keep = (scalar(0.75), scalar(keep)) if as_tensor else (0.75, keep)
    first, second = torch.tensor([-0.5]), torch.tensor([-1.0])
    average, found = torch.zeros(1), 0.0
    take_importance(first, average, decay, 1.0)
    found = take_weight(found, decay, 1.0)
    assert average.item() == 0.125 and found == 0.25
    take_importance(second, average, decay, keep)
    found = take_weight(found, decay, keep)
    assert first.item() == -0.5 and second.item() == -1.0
    assert math.isclose(average.item(), total, rel_tol=1e-7) and math.isclose(float(found), weight, rel_tol=1e-12)


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.sampled_from([1.0, 0.1, 0.0])), min_size=1, max_size=12),
    st.floats(0.01, 0.999),
)
@settings(max_examples=100, deadline=None)
def test_importance_is_a_mean_of_gradients_and_of_todays_alone_after_a_hard_reset(steps, decay):
    average, weight = torch.zeros(1, dtype=torch.float64), 0.0
    since = []
    for size, keep in steps:
        take_importance(scalar([size]), average, decay, keep)
        weight = take_weight(weight, decay, keep)
        since = [size] if keep == 0 else [*since, size]
        importance = average.item() / weight
        assert min(since) * (1 - 1e-12) <= importance <= max(since) * (1 + 1e-12)


def test_no_reset_makes_the_rates_jump_while_gradients_stay_the_same():
    grad, average, weight = torch.full((3,), 0.01), torch.zeros(3), 0.0
    options = GOLDEN | {"eps": 1e-8, "mean": 0.01}
    for keep in [1.0] * 5 + [0.1] + [1.0] * 3 + [0.0, 1.0]:
        take_importance(grad, average, 0.95, keep)
        weight = take_weight(weight, 0.95, keep)
        factor = dgs_factor("full", average, **options, weight=weight)
        np.testing.assert_allclose(factor.numpy(), 0.1 * 2 / (0.01 * 0.5), rtol=1e-5)


SIZES = [0.0, 1e-45, 1e-38, 1e-20, 1e-8, 1.0, 1e20, 1e38, 3.4e38]


def exact(form, size, mean, collective):
    """The factor in Python's floats, rate 0.5, beta 2, eps 1e-8."""
    return {
        "importance": 0.5 / (size + 1e-8),
        "full": 0.5 * 2 / (size + 1e-8) / collective,
        "normalized": 0.5 * min(max(mean / (size + 1e-8 * mean), 0.1), 10.0),
    }[form]


@pytest.mark.parametrize("kind", ["numbers", torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["importance", "full", "normalized"])
def test_sizes_at_the_ends_of_float32(form, kind):
    importance = torch.tensor(SIZES)
    for mean in importance.tolist()[1:]:
        options = {
            "collective": mean + 1e-3,
            "mean": mean,
            "beta": 2.0,
            "eps": 1e-8,
            "bounds": (0.1, 10.0),
            "rate": 0.5,
        }
        found = dgs_factor(form, importance, **(options if kind == "numbers" else as_tensors(options, kind)))
        expected = [exact(form, size, mean, mean + 1e-3) for size in importance.tolist()]
        # Where the layer's mean is among the smallest numbers, eps of it is 0: still the upper bound.
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-6, atol=2e-45)


def test_a_layer_without_gradient_keeps_its_rate():
    for mean in (0.0, scalar(0.0), torch.tensor(0.0), scalar(1e-60)):
        found = dgs_factor("normalized", torch.zeros(3), **(GOLDEN | {"mean": mean}))
        assert found.tolist() == [torch.tensor(0.1).item()] * 3


@pytest.mark.parametrize("bad", [INF, NAN])
@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_that_is_not_finite_is_not_hidden(form, bad):
    grad = torch.tensor([1.0, bad, -2.0])
    options = GOLDEN | {"collective": sum_of_importance(grad), "mean": sum_of_importance(grad) / 3}
    assert math.isnan((grad * dgs_factor(form, grad.abs(), **options))[1])


@pytest.mark.parametrize(("form", "what"), [("equation", "collective"), ("full", "collective"), ("normalized", "mean")])
@pytest.mark.parametrize("number", [INF, scalar(INF), torch.tensor(1e30) * 1e30, scalar(NAN)])
def test_an_overflow_of_a_sum_over_finite_gradients_does_not_stop_the_run_in_silence(form, what, number):
    for eps in (0.25, 0.0):
        found = dgs_factor(form, torch.ones(3), **(GOLDEN | {what: number, "eps": eps}))
        assert torch.as_tensor(found).isnan().all()


def test_a_collective_beyond_float32_is_exact_while_it_is_float64():
    found = dgs_factor("full", torch.tensor([1e-8]), **(GOLDEN | {"eps": 1e-8, "collective": scalar(4e38)}))
    assert math.isclose(found.item(), 0.1 * 2 / 2e-8 / 4e38, rel_tol=1e-5)


def level_after(means, threshold):
    level, weight, found = scalar(0.0), scalar(0.0), []
    for mean in means:
        before = level.clone(), weight.clone()
        found.append(bool(spikes(scalar(mean), level, weight, threshold)))
        new = take_level(scalar(mean), level, weight, threshold)
        assert (level, weight) == before
        level, weight = new
    return (level / weight).item(), found


def test_golden_level():
    """Without history nothing is a spike; then 2 is twice the level of 1, and 2.5 enters as 2."""
    assert level_after([1.0], 2.0) == (1.0, [False])
    level, found = level_after([1.0, 2.0], 2.0)
    assert found == [False, False] and math.isclose(level, (0.99 * 1 + 2) / (0.99 + 1))
    level, found = level_after([1.0, 2.5], 2.0)
    assert found == [False, True] and math.isclose(level, (0.99 * 1 + 2) / (0.99 + 1))


@pytest.mark.parametrize("bad", [INF, NAN, 0.0])
def test_what_says_nothing_of_the_gradients_is_no_spike_and_leaves_the_level_alone(bad):
    usual = level_after([1.0, 1.5, 4.0], 2.0)
    level, found = level_after([bad, 1.0, bad, 1.5, bad, 4.0], 2.0)
    assert level == usual[0] and found == [False, False, False, False, False, True]


def test_a_lasting_shift_is_followed_and_one_spike_is_not():
    level, found = level_after([1.0] * 200 + [1000.0] + [1.0] * 20, 3.0)
    assert found == [False] * 200 + [True] + [False] * 20 and level < 1.03
    level, found = level_after([1.0] * 200 + [4.0] * 200, 3.0)
    assert found[200] and not any(found[240:]) and level > 3


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), st.floats(1.1, 10))
@settings(max_examples=100, deadline=None)
def test_level_is_that_of_the_reference(means, threshold):
    reference = ReferenceDGS({"p": 0.0}, reset_spike=threshold)
    expected = [reference.spiked(mean) for mean in means]
    level, found = level_after(means, threshold)
    assert math.isclose(level, reference.level(), rel_tol=1e-9)
    # Where a mean is the threshold itself, rounding decides.
    assert found == expected or any(math.isclose(a, threshold * b) for a, b in itertools.product(means, means))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sum_is_that_of_exact_arithmetic_in_any_layout(dtype, monkeypatch):
    tensor = (torch.randn(6, 50, 10) * 10.0 ** torch.randint(-4, 4, (6, 50, 10))).to(dtype)
    before = tensor.clone()
    for piece, view in itertools.product((7, 64, 1 << 17), (tensor, tensor.permute(2, 0, 1), tensor[::2, :, ::3])):
        monkeypatch.setattr(dgs, "_PIECE_ON_CPU", piece)
        found = sum_of_importance(view)
        assert found.dtype == torch.float64 and found.shape == ()
        assert math.isclose(found.item(), math.fsum(view.abs().double().flatten().tolist()), rel_tol=1e-15 * 20)
    assert torch.equal(tensor, before)
    assert sum_of_importance(torch.empty(0, 3, dtype=dtype)).item() == 0.0
    assert sum_of_importance(torch.full((3,), torch.finfo(dtype).max, dtype=dtype)) == 3 * torch.finfo(dtype).max


@given(st.lists(st.integers(0, 400), min_size=1, max_size=6), st.integers(0, 2**32), st.floats(0, 8))
@settings(max_examples=60, deadline=None)
def test_shards_add_up_to_the_same_float32(parts, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.exp(spread * torch.randn(sum(parts), generator=generator))
    whole = sum_of_importance(tensor)
    shards = sum(sum_of_importance(shard) for shard in tensor.split(parts))
    assert whole.float() == shards.float()
    assert math.isclose(whole.item(), shards.item(), rel_tol=1e-14, abs_tol=0)


def test_all_of_it_compiles_into_one_graph_that_computes_the_same():
    """A branch on the value of a tensor would break the graph."""

    def step(grad, average, weight, level, level_weight, constants):
        decay, reset, threshold, beta, eps, low, high, rate, sigma = constants.unbind()
        mean = sum_of_importance(grad) / grad.numel()
        keep = torch.where(spikes(mean, level, level_weight, threshold), reset, 1.0)
        take_importance(grad, average, decay, keep)
        weight = take_weight(weight, decay, keep)
        options = {"collective": collective_importance(mean.float(), sigma), "mean": mean.float(), "beta": beta}
        options |= {"eps": eps, "bounds": (low, high), "rate": rate, "weight": weight}
        factors = [dgs_factor(form, average, **options) for form in FORMS]
        return keep, weight, *take_level(mean, level, level_weight, threshold), *factors

    compiled = torch.compile(step, fullgraph=True)
    constants = torch.tensor([0.9, 0.1, 2.0, 2.0, 1e-8, 0.1, 10.0, 1e-3, 1e-8])
    for size in (1.0, 1e3, 0.0, 1e-44, 1e38, INF, NAN):
        grad = torch.randn(1003) * size if math.isfinite(size) else torch.tensor([1.0, size] * 500 + [0.0] * 3)
        mine, theirs = torch.rand(1003), None
        theirs = mine.clone()
        level, level_weight = scalar(0.3), scalar(0.4)
        found = compiled(grad, mine, torch.tensor(0.5), level, level_weight, constants)
        expected = step(grad, theirs, torch.tensor(0.5), level, level_weight, constants)
        for one, other in zip((mine, *found), (theirs, *expected), strict=True):
            torch.testing.assert_close(one, other, rtol=3e-7, atol=0, equal_nan=True)
