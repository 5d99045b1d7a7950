"""Steps under FSDP1 out of the ordinary, on real processes.

Guards against ranks that disagree on whether a step was taken, which ends in ranks that wait forever, and against
training that goes on silently wrong, or silently does nothing.
"""

import pytest

from tests.engines.cases_fsdp1_steps import everything, tensor_parallel
from tests.engines.launch import run_ranks

BOTH = (True, False)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(everything, 2, tmp_path_factory.mktemp("steps"))


def test_a_step_skipped_for_an_overflow_changes_nothing(ranks):
    for results in ranks:
        for original in BOTH:
            steps = results["overflow", original]["skipped and unchanged"]
            assert all(skipped == unchanged for skipped, unchanged in steps)
            assert [skipped for skipped, _ in steps].count(True) > 1 and steps[7] == (True, True)
            taken = [skipped for skipped, _ in steps].count(False)
            assert results["overflow", original]["clocks"] == [taken] and taken >= 4
            assert results["overflow", original]["report"].step == taken // 4 * 4
            assert results["overflow", original] == ranks[0]["overflow", original]


def test_ranks_without_any_gradient_step_with_the_others(ranks):
    assert [results["gradients_on_one_rank", True]["seen"][0] for results in ranks] == [True, False]
    for results in ranks:
        for original in BOTH:
            case = results["gradients_on_one_rank", original]
            assert case["clocks"] == [5]
            assert case["used"] == pytest.approx(ranks[0]["gradients_on_one_rank", True]["used"], abs=0)


def test_a_step_without_gradients_counts_on_all_ranks_or_on_none(ranks):
    for results in ranks:
        clocks, unchanged = results["no_gradients"]
        assert unchanged and clocks == ranks[0]["no_gradients"][0]


def test_parameters_are_found_among_frozen_objects(ranks):
    assert [results["frozen_objects"] for results in ranks] == [([1], True)] * 2


def test_a_wrong_offset_on_one_rank_raises_on_all_before_anything_changes(ranks):
    for results in ranks:
        for original in BOTH:
            error, unchanged, states, clocks = results["wrong_offsets", original]
            assert error.startswith("UnsupportedShardingError: the ranks' parts of 0.weight [40, 12] do not make up")
            assert unchanged and states == 0 and clocks == [0]


def test_a_step_on_parameters_that_are_not_sharded_is_refused(ranks):
    for results in ranks:
        for original in BOTH:
            for name in ("summoned", "summoned, SHARD_GRAD_OP"):
                first, second, clocks = results["refused", original][name]
                assert "outside of summon_full_params" in first and first == second and clocks == [1]
                assert first.startswith("UnsupportedShardingError: _fsdp_wrapped_module.")


def test_a_step_on_gradients_that_are_not_synchronized_is_refused(ranks):
    for results in ranks:
        for original in BOTH:
            error, states, clocks = results["refused", original]["not synchronized"]
            assert "outside of no_sync()" in error and states == 0 and clocks == [0]


def test_an_optimizer_of_parameters_that_the_model_has_no_longer_is_refused(ranks):
    for results in ranks:
        error, states, clocks = results["refused", False]["made before"]
        assert error.startswith("UnsupportedShardingError") and "make the optimizer after wrapping" in error
        assert states == 0 and clocks == [0]


def test_target_modules_inside_one_vector_are_refused(ranks):
    for results in ranks:
        error = results["refused", False]["target"]
        assert error.startswith("ValueError: target_modules=['1']") and "use_orig_params" in error


def test_tensor_parallel_layers_are_refused(tmp_path):
    for error, states in run_ranks(tensor_parallel, 4, tmp_path):
        assert error.startswith("UnsupportedShardingError") and "by tensor parallel" in error and states == 0
