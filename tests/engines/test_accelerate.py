"""accelerate's DDP and FSDP2, end to end, against the same loops on one process.

Guards against an engine that is not the one named, names and shapes lost when `prepare` replaces the parameters,
originals kept alive, and groups of shards instead of layers.
"""

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.engines.cases_accelerate import STEPS, everything
from tests.engines.launch import run_ranks

ENGINES = {
    "ddp": {"distributed type": "MULTI_CPU", "wrapped by DDP": True, "sharded": False},
    "fsdp2": {"distributed type": "FSDP", "wrapped by DDP": False, "sharded": True},
    "hsdp": {"distributed type": "FSDP", "wrapped by DDP": False, "sharded": True},
}


@pytest.fixture(scope="module")
def single():
    results = everything(0, 1, "single")
    AcceleratorState._reset_state(reset_partial_state=True)
    return results


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, run_ranks(everything, 4 if request.param == "hsdp" else 2, folder, request.param)


def test_the_engine_is_the_one_named(single, engine):
    name, ranks = engine
    for results in ranks:
        for case in results.values():
            assert {key: case[key] for key in ENGINES[name]} == ENGINES[name]
            if name == "hsdp":
                assert case["placements"] == {"(Replicate(), Shard(dim=0))"}
    assert {single["plain"][key] for key in ENGINES[name]} == {"NO", False}


def test_training_equals_one_process(single, engine):
    name, ranks = engine
    for results in ranks:
        for case in set(results) - {"overflow"}:
            expected = single[case]
            assert results[case]["losses"] == pytest.approx(expected["losses"], rel=1e-5), case
            assert results[case]["report"].step == expected["report"].step == STEPS
            assert layers(results[case]) == layers(expected), case
            assert results[case]["report"] == ranks[0][case]["report"]


def test_every_grouping_is_that_of_the_whole_layers_bit_for_bit(engine):
    for results in engine[1]:
        for case in set(results) - {"overflow"}:
            assert results[case]["right"] == [True] * 5, case


def test_a_grouping_of_shards_is_one_all_reduce_of_counts(engine):
    name, ranks = engine
    for results in ranks:
        for case in set(results) - {"overflow"}:
            layers = len(results[case]["report"].layers)
            expected = [] if name == "ddp" else [layers * 65_281 * 4]
            sent = [(grouping, sizes) for grouping, sizes in results[case]["sent"] if grouping or sizes]
            if name != "ddp":  # the self-check of the first step: four integers per parameter
                (grouping, sizes), *sent = sent
                assert not grouping and sizes == [4 * 8 * len(results[case]["state"])]
            assert sent == [(True, expected)] * 5, case
            assert sum(grouping for grouping, _ in results[case]["sent"]) == 5


def test_every_case_was_run(engine):
    cases = {
        "ddp": {"plain", "accumulated", "compiled", "tied", "lora", "unused", "overflow"},
        "fsdp2": {"plain", "accumulated", "compiled", "tied", "lora", "overflow"},
        "hsdp": {"plain", "accumulated"},
    }
    assert all(set(results) == cases[engine[0]] for results in engine[1])


def test_names_and_scaled_layers(engine):
    for results in engine[1]:
        assert [name for name, _ in layers(results["plain"])] == ["0.weight", "1.weight", "3.weight"]
        if engine[0] == "hsdp":
            continue
        tied = [name for name, _ in layers(results["tied"])]
        assert tied[0] == "model.embed_tokens.weight" and "lm_head.weight" not in tied and len(set(tied)) == 15
        lora = [name for name, _ in layers(results["lora"])]
        assert len(lora) == 4 and all("q_proj.lora_" in name for name in lora)  # and not v_proj's
        assert results["lora"]["scaled"] == [True, False]


def test_prepare_frees_the_original_parameters(engine):
    name, ranks = engine
    for results in ranks:
        assert results["plain"]["freed"] == (0.0 if name == "ddp" else 1.0)


def test_all_ranks_end_with_the_same_weights(engine):
    for results in engine[1]:
        for case in set(results) - {"overflow"}:
            for mine, first in zip(results[case]["state"], engine[1][0][case]["state"], strict=True):
                assert mine.keys() == first.keys() and all(torch.equal(mine[key], first[key]) for key in mine)


def test_a_step_skipped_for_an_overflow_changes_nothing(engine):
    for results in engine[1] if engine[0] != "hsdp" else []:
        steps = results["overflow"]["unchanged and skipped"]
        assert steps == [(index in (0, 5), index in (0, 5)) for index in range(8)]
        assert results["overflow"]["counts"] == {6}
        assert results["overflow"]["grouped at"] == 4


def layers(case):
    return [(layer.name, layer.numel) for layer in case["report"].layers]
