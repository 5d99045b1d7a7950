"""DGS under DDP, FSDP2, hybrid sharding, tensor parallel and FSDP1: its sums are those of the whole model.

    rank 0   sum |g| here      \\                       G, the same on all ranks
    rank 1   sum |g| here       >  one all-reduce  -->  M and the trust ratio of each layer, likewise
    rank 2   (no element)      /

Guards against sums of shards, or over replicas twice, another n, ranks that go apart, and needless traffic.
"""

import pytest
import torch

from tests.engines.cases_dgs import (
    CASES,
    LAYERS,
    METHODS,
    SHAPES,
    STEPS,
    TRAINED,
    TRAINED_STEPS,
    UNLIKE,
    alone,
    collective_importance,
)
from tests.engines.cases_dgs_torch import ENGINES, FEW, PARALLEL, everything
from tests.engines.launch import run_ranks

WORLDS = list(ENGINES)
FSDP1 = {"class": "FullyShardedDataParallel", "placements": set(), "strategies": {"FULL_SHARD"}}
FACTS = {
    "ddp": {"class": "DistributedDataParallel"},
    "fsdp2": {"class": "FSDPFed", "placements": {"(Shard(dim=0),)"}},
    "hsdp": {"class": "FSDPFed", "placements": {"(Replicate(), Shard(dim=0))"}},
    "fsdp1": {**FSDP1, "vectors": {False}},
    "fsdp1 vectors": {**FSDP1, "vectors": {True}},
    "fsdp1 no shard": {**FSDP1, "strategies": {"NO_SHARD"}},
    "fsdp1 hybrid": {**FSDP1, "strategies": {"HYBRID_SHARD"}},
    "tensor parallel": {"class": "Language", "placements": {"(Shard(dim=0),)", "(Shard(dim=1),)"}},
    "tensor parallel, fsdp2": {
        "class": "FSDPLanguage",
        "placements": {
            "(Shard(dim=0),)",
            "(Shard(dim=0), Shard(dim=1))",
            "(_StridedShard(dim=0, sf=2), Shard(dim=0))",
        },
    },
}
NUMEL = sum(torch.Size(shape).numel() for shape in SHAPES.values())
UNSHARDED = ("ddp", "fsdp1 no shard")


@pytest.fixture(scope="module")
def single():
    return alone()


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request, tmp_path_factory):
    return run_ranks(everything, request.param, tmp_path_factory.mktemp(f"dgs{request.param}"))


def fed(ranks):
    """Engine, name of the case, and result of everything that was fed, of all ranks."""
    return [
        (engine, name, result)
        for results in ranks
        for engine, cases in results["fed"].items()
        for name, result in cases.items()
    ]


def trained(ranks):
    """The same of what was trained."""
    return [
        (engine, name, result)
        for results in ranks
        for engine, methods in results["trained"].items()
        for name, result in methods.items()
    ]


def test_every_case_was_run(single, ranks):
    world = len(ranks)
    assert set(single["fed"]) == set(CASES)
    for results in ranks:
        assert set(results["fed"]) == set(ENGINES[world])
        assert set(results["trained"]) == {*ENGINES[world], *PARALLEL[world]}
        for (engine, cases), whole in zip(results["fed"].items(), ENGINES[world].values(), strict=True):
            left_out = {name for name in CASES if CASES[name].method in UNLIKE and engine == "fsdp1 vectors"}
            assert cases.keys() == (CASES.keys() if whole else set(FEW)) - left_out
        assert all(set(methods) == set(TRAINED) for methods in results["trained"].values())


def test_the_engine_is_the_one_named(ranks):
    for engine, name, result in fed(ranks) + trained(ranks):
        expected = dict(FACTS[engine])
        if name in TRAINED and result["facts"]["class"] == "FSDPLanguage":
            expected["class"] = "FSDPLanguage"
        assert {key: result["facts"][key] for key in expected} == expected, (engine, name)


def test_some_ranks_have_nothing_of_some_layers(ranks):
    here = {
        engine: [results["fed"][engine]["full"]["facts"]["here"] for results in ranks] for engine in ranks[0]["fed"]
    }
    for engine, parts in here.items():
        if engine not in (*UNSHARDED, "fsdp1 vectors"):
            assert any(0 in part for part in parts), engine
        copies = len(ranks) if engine in UNSHARDED else 2 if engine in ("hsdp", "fsdp1 hybrid") else 1
        padding = 5 if engine == "fsdp1 vectors" else 0
        assert 0 <= sum(map(sum, parts)) - copies * NUMEL <= padding, engine


def test_sums_over_all_gradients_are_those_of_one_process(single, ranks):
    """Trust ratio, G, M, the weight of the past and resets of each layer, at every step."""
    for engine, name, result in fed(ranks):
        assert_numbers(result["numbers"], single["fed"][name]["numbers"], 1e-12, (engine, name))
        assert len(result["numbers"]) == (0 if CASES[name].method.startswith("importance") else STEPS)


@pytest.mark.parametrize("case", ["equation", "frozen"])
def test_the_collective_importance_is_the_mean_over_all_trained_elements(ranks, case):
    frozen = CASES[case].frozen
    for engine, name, result in fed(ranks):
        if name == case:
            expected = list(collective_importance(sigma=0.5, frozen=frozen or "none"))
            for numbers, value in zip(result["numbers"], expected, strict=True):
                assert [row[1] for row in numbers.values()] == pytest.approx([value] * len(numbers), rel=1e-12), engine


def test_all_ranks_have_the_same_numbers(ranks):
    for kind in (fed, trained):
        first = {(engine, name): result for engine, name, result in kind(ranks[:1])}
        for engine, name, result in kind(ranks[1:]):
            # As text: M of a layer that has not had a gradient is NaN.
            assert str(result["numbers"]) == str(first[engine, name]["numbers"]), (engine, name)
            # What is known of a layer, also on ranks that have nothing of it.
            assert result["facts"]["layers"] == first[engine, name]["facts"]["layers"], (engine, name)


def test_the_same_gradients_give_the_same_weights(single, ranks):
    for engine, name, result in fed(ranks):
        assert_weights(result["weights"], single["fed"][name]["weights"], 1e-6, (engine, name))


def test_training_equals_one_process(single, ranks):
    for engine, name, result in trained(ranks):
        expected = single["trained"][name]
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5), (engine, name)
        assert_weights(result["weights"], expected["weights"], 1e-5, (engine, name))
        assert len(result["numbers"]) == TRAINED_STEPS
        assert_numbers(result["numbers"], expected["numbers"], 1e-4, (engine, name))


def test_a_step_sends_one_number_or_some_for_each_layer_in_one_all_reduce(ranks):
    for engine, name, result in fed(ranks):
        first, *later = result["sent"]
        sent = [] if engine in UNSHARDED or not CASES[name].sent else [CASES[name].sent]
        assert later == [sent] * (STEPS - 1), (engine, name)
        # The first step checks itself: four integers for each layer; and whether the base steps shards as whole layers.
        tried = [8] if CASES[name].method.startswith("adapter") and engine in ("fsdp2", "hsdp") else []
        assert first == ([] if engine in UNSHARDED else [4 * 8 * LAYERS, *tried, *sent]), (engine, name)


def test_the_cases_are_what_they_are_called(single):
    assert [CASES[name].sent for name in METHODS] == [8, 8, 0, 0, 144, 144, 144, 8, 144, 144, 288, 288]
    resets = [next(iter(numbers.values()))[4] for numbers in single["fed"]["running"]["numbers"]]
    assert resets[:3] == [1.0, 1.0, pytest.approx(0.1)]  # periodic
    assert resets[4] == pytest.approx(0.1) and resets[6] == 1.0  # of the spike
    ratios = {row[0] for numbers in single["fed"]["lars"]["numbers"] for row in numbers.values()}
    assert len(ratios) > STEPS and 1.0 in ratios
    late = single["fed"]["unused, running"]["numbers"]
    assert [numbers["third.tall"][3] > 0 for numbers in late] == [False] * 4 + [True] * 3
    assert late[4]["third.tall"][4] == pytest.approx(0.1)  # the spike is the model's


def assert_numbers(found, expected, rel, where):
    assert len(found) == len(expected), where
    for step, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        for name, row in mine.items():
            assert row == pytest.approx(theirs[name], rel=rel, nan_ok=True), (*where, step, name)


def assert_weights(found, expected, atol, where):
    for name, weight in found.items():
        assert torch.allclose(weight, expected[name], rtol=0, atol=atol), (*where, name)
