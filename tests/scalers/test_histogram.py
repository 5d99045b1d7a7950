"""A histogram whose counts depended on chunks, layout or rounding would give every rank its own clusters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.scalers import histogram
from gradscale.scalers.histogram import N_BINS, ZERO_EDGE, Counter, bin_values, count_values

VALUES = bin_values(torch.device("cpu"))


def test_bins_are_the_finite_bfloat16_numbers_in_order():
    assert VALUES.shape == (N_BINS,) and VALUES.dtype == torch.float64
    assert (VALUES.diff() >= 0).all() and VALUES.isfinite().all()
    assert VALUES[ZERO_EDGE - 1] == 0 and VALUES[ZERO_EDGE] == 0 and VALUES[ZERO_EDGE + 1] > 0
    assert VALUES[-1] == torch.finfo(torch.bfloat16).max and len(VALUES.unique()) == N_BINS - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("absolute", [False, True])
def test_counts_are_those_of_rounding_to_bfloat16(dtype, absolute):
    tensor = (torch.randn(37, 53) * 3).to(dtype)
    counts, bad = count_values(tensor, absolute=absolute)
    key = tensor.abs() if absolute else tensor
    expected = np.unique(key.to(torch.bfloat16).double().numpy(), return_counts=True)
    occupied = counts > 0
    assert bad == 0 and counts.sum() == tensor.numel()
    np.testing.assert_array_equal(VALUES[occupied].numpy(), expected[0])
    np.testing.assert_array_equal(counts[occupied].numpy(), expected[1])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_any_split_adds_up_to_the_same_counts(parts, chunk):
    tensor = torch.randn(sum(parts))
    whole, _ = count_values(tensor)
    original = histogram._PIECE_ON_CPU
    histogram._PIECE_ON_CPU = chunk
    try:
        pieces = sum(count_values(piece)[0] for piece in tensor.split(parts))
    finally:
        histogram._PIECE_ON_CPU = original
    assert torch.equal(pieces, whole)


def test_layout_does_not_matter_and_the_input_is_not_changed():
    tensor = torch.randn(20, 30)
    before = tensor.clone()
    whole, _ = count_values(tensor)
    assert torch.equal(count_values(tensor.t())[0], whole)
    assert torch.equal(count_values(torch.stack([tensor, tensor])[:, ::1][0])[0], whole)
    assert torch.equal(tensor, before)


def test_inf_nan_and_overflow_are_counted_apart():
    tensor = torch.tensor([1.0, float("inf"), -float("inf"), float("nan"), 3.4e38, -3.4e38, 0.0])
    counts, bad = count_values(tensor)
    assert bad == 3 and counts.sum() == 4
    assert counts[0] == 1 and counts[-1] == 1  # 3.4e38 would round to inf in bfloat16


def test_empty_tensor():
    counts, bad = count_values(torch.empty(0, 3))
    assert counts.sum() == 0 and bad == 0


def test_a_counter_starts_anew_with_every_tensor():
    counter = Counter(torch.device("cpu"))
    tensors = [torch.randn(300), torch.tensor([3.4e38, float("nan"), 1.0]), -torch.rand(7, 9), torch.empty(0)]
    for dtype in (torch.int32, torch.int64):
        rows = torch.full((len(tensors), N_BINS + 1), 5, dtype=dtype)
        for tensor, row in zip(tensors, rows, strict=True):
            counter.count(tensor, row, absolute=True)
        for tensor, row in zip(tensors, rows, strict=True):
            counts, bad = count_values(tensor.abs())
            assert torch.equal(row[:-1], counts.to(dtype)) and row[-1] == bad
