"""DGS under DeepSpeed ZeRO: no parameter moves before the gradients of all are known.

    call of step()   gradients of                                   with sums over all gradients
    1                the first flat tensor (a param group, or ...   waits
    2                the second            ... a sub-group of ZeRO 3) waits
    3                the last                                       one all-reduce, then all three are updated

Guards against sums over one call's tensors, sums of shards, updates that the model never sees, and needless traffic.
"""

import pytest
import torch

from tests.engines.cases_dgs import CASES, LAYERS, STEPS, TRAINED, TRAINED_STEPS, alone, collective_importance
from tests.engines.cases_dgs_zero import ALL, FED, FEW, everything
from tests.engines.launch import run_ranks
from tests.engines.test_dgs import assert_numbers, assert_weights

TWO = {"class": "DeepSpeedZeroOptimizer", "stage": 2, "offload": False, "calls": {3}, "dtype": torch.float32}
THREE = {**TWO, "class": "DeepSpeedZeroOptimizer_Stage3", "stage": 3}
SMALL = {**THREE, "calls": {7}}
FACTS = {
    "zero1": {**TWO, "stage": 1},
    "zero2": TWO,
    "zero2 offload": {**TWO, "offload": True},
    "zero3": THREE,
    "zero3 small": SMALL,
    "zero3 offload": {**SMALL, "offload": True},
    "bf16 optimizer": {**TWO, "class": "BF16_Optimizer", "stage": 1, "calls": {1}, "dtype": torch.bfloat16},
    "zero2 bf16": {**TWO, "dtype": torch.bfloat16},
    "zero3 bf16": {**SMALL, "dtype": torch.bfloat16},
}


@pytest.fixture(scope="module")
def single():
    return alone()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(everything, 2, tmp_path_factory.mktemp("zero"))


def results_of(ranks, kind):
    """Kind of ZeRO, name, and result of everything that was fed, or trained, of all ranks."""
    return [
        (zero, name, result)
        for results in ranks
        for zero, cases in results[kind].items()
        for name, result in cases.items()
    ]


def test_every_case_was_run(ranks):
    used = {name for name, case in CASES.items() if not case.unused}
    for results in ranks:
        assert {zero: set(cases) for zero, cases in results["fed"].items()} == {
            zero: used if zero in ALL else set(FEW) for zero in FED
        }
        assert {zero: set(cases) for zero, cases in results["trained"].items()} == dict.fromkeys(ALL, set(TRAINED))


def test_the_engine_is_the_one_named(ranks):
    for zero, name, result in results_of(ranks, "fed"):
        few = {"calls": {5}} if CASES[name].frozen and zero == "zero3 small" else {}
        assert result["facts"] == {**FACTS[zero], **few}, (zero, name)
    assert all(max(result["facts"]["calls"]) > 4 for _, _, result in results_of(ranks, "trained"))


def test_sums_over_all_gradients_are_those_of_one_process(single, ranks):
    """Once per training step, whatever the number of calls; no layer is missing, none counted twice."""
    for zero, name, result in results_of(ranks, "fed"):
        expected = single["fed"][name]["numbers"]
        assert_numbers(result["numbers"], expected, 1e-12, (zero, name))
        if expected and not CASES[name].frozen:
            assert all(numbers.keys() == expected[0].keys() for numbers in result["numbers"])


def test_the_collective_importance_is_the_mean_over_all_trained_elements(ranks):
    found = 0
    for zero, name, result in results_of(ranks, "fed"):
        if CASES[name].method == "full":
            expected = collective_importance(sigma=0.5, frozen=CASES[name].frozen or "none")
            for numbers, value in zip(result["numbers"], expected, strict=True):
                assert [row[1] for row in numbers.values()] == pytest.approx([value] * len(numbers), rel=1e-12), zero
                found += 1
    assert found == STEPS * len(ranks) * (len(FED) + len(ALL))


def test_all_ranks_have_the_same_numbers(ranks):
    for kind in ("fed", "trained"):
        first = {(zero, name): result for zero, name, result in results_of(ranks[:1], kind)}
        for zero, name, result in results_of(ranks[1:], kind):
            assert str(result["numbers"]) == str(first[zero, name]["numbers"]), (zero, name)


def test_the_same_gradients_give_the_same_weights(single, ranks):
    """Of the master copies; that of the model has them, or the next step of training would be another."""
    for zero, name, result in results_of(ranks, "fed"):
        assert_weights(result["weights"], single["fed"][name]["weights"], 1e-6, (zero, name))


def test_training_equals_one_process(single, ranks):
    for zero, name, result in results_of(ranks, "trained"):
        expected = single["trained"][name]
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5), (zero, name)
        assert_weights(result["weights"], expected["weights"], 1e-5, (zero, name))
        assert len(result["numbers"]) == TRAINED_STEPS


def test_a_training_step_sends_one_number_or_some_for_each_layer_in_one_all_reduce(ranks):
    for zero, name, result in results_of(ranks, "fed"):
        first, *later = result["sent"]
        if CASES[name].frozen:
            assert {len(sizes) for sizes in later} == {1}, (zero, name)
            continue
        sent = [CASES[name].sent] if CASES[name].sent else []
        assert later == [sent] * (STEPS - 1), (zero, name)
        # The first step checks itself: four integers for each layer, and asks for state that was written past it.
        asked = 0 if CASES[name].method.startswith("adapter") else 1
        assert first[0] == 4 * 8 * LAYERS and first[1 + asked :] == sent, (zero, name)
