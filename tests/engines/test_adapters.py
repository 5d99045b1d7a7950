"""SGG around any optimizer under DDP, FSDP2, hybrid sharding, FSDP1 and DeepSpeed ZeRO.

    base                       whole layers, DTensor shards            vectors of FSDP1 and ZeRO
    elementwise                groups and weights of one process       the same
    by layer (LAMB, CAME, ...) the same, or refused                    refused

Guards against groups of shards, groupings in each of ZeRO's calls, scales in another layer's place, and against bases
that are silently wrong on shards.
"""

import pytest
import torch

from tests.engines.cases_adapters import (
    BY_LAYER,
    CASES,
    ENGINES,
    ON_VECTORS,
    ZERO,
    alone,
    case_of,
    on_torch,
    on_zero,
    refused_on_vectors,
)
from tests.engines.launch import run_ranks
from tests.engines.test_dgs import FACTS, assert_weights
from tests.engines.test_dgs_zero import FACTS as ZERO_FACTS

# With torch 2.13: DTensor does not know what all but the last do. That one is wrong without a word when it is alone.
REFUSED_ON_SHARDS = ("lamb", "adafactor", "transformers adafactor", "came", "muon", "local norm")


@pytest.fixture(scope="module")
def single():
    return alone([*CASES, *BY_LAYER])


@pytest.fixture(scope="module", params=list(ENGINES))
def ranks(request, tmp_path_factory):
    return run_ranks(on_torch, request.param, tmp_path_factory.mktemp(f"adapters{request.param}"))


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    return run_ranks(on_zero, 2, tmp_path_factory.mktemp("adapters_zero"))


def results_of(ranks):
    """Engine, case and result of everything, of all ranks."""
    return [(engine, name, result) for results in ranks for (engine, name), result in results.items()]


def assert_as_one_process(results, single):
    for engine, name, result in results:
        if name in REFUSED_ON_SHARDS and engine in ("fsdp2", "hsdp"):
            assert "does not step shards of a layer (DTensor) as it steps the layer" in result["refused"], (
                engine,
                name,
            )
            continue
        assert result["refused"] == "", (engine, name)
        expected = single[name]
        assert result["reports"].keys() == expected["reports"].keys(), (engine, name)
        for step, layers in expected["reports"].items():
            mine = result["reports"][step]
            assert mine.keys() == layers.keys(), (engine, name, step)
            for layer, right in layers.items():
                if name in BY_LAYER:  # sums over ranks are of another order
                    assert mine[layer].scales == pytest.approx(right.scales, rel=1e-3), (engine, name, step, layer)
                else:
                    assert mine[layer].counts == right.counts, (engine, name, step, layer)
                    assert mine[layer].scales == pytest.approx(right.scales, rel=1e-6), (engine, name, step, layer)
        assert_weights(result["weights"], expected["weights"], 1e-5 if name in BY_LAYER else 1e-6, (engine, name))


def test_under_torchs_engines_groups_and_weights_are_those_of_one_process(single, ranks):
    assert {key for key in ranks[0]} == {
        (engine, name) for engine, names in ENGINES[len(ranks)].items() for name in names
    }
    assert_as_one_process(results_of(ranks), single)


def test_the_engine_is_the_one_named(ranks, zero):
    for engine, name, result in results_of(ranks):
        if not result["refused"]:
            expected = FACTS[engine]
            assert {key: result["facts"][key] for key in expected} == expected, (engine, name)
    for engine, name, result in results_of(zero):
        expected = {**ZERO_FACTS[engine]}
        if name == "frozen":
            expected.pop("calls")
        assert {key: result["facts"][key] for key in expected} == expected, (engine, name)


def test_under_zero_groups_and_weights_are_those_of_one_process(single, zero):
    """One grouping in a training step, however many calls of step() that takes."""
    assert set(zero[0]) == {(kind, name) for kind, names in ZERO.items() for name in names}
    assert_as_one_process(results_of(zero), single)


def test_all_ranks_have_the_same_groups(ranks, zero):
    for results in (ranks, zero):
        for key, result in results[0].items():
            assert all(other[key].get("reports") == result.get("reports") for other in results[1:]), key


def test_a_grouping_sends_the_counts_in_one_all_reduce_and_other_steps_send_nothing(zero):
    for engine, name, result in results_of(zero):
        if name in ("nadam", "rmsprop"):
            for step, sizes in enumerate(result["sent"][1:], 1):
                if step not in result["reports"]:
                    assert sizes == [], (engine, name, step)
                else:
                    assert sizes and sizes[0] == len(result["reports"][step]) * 65281 * 4, (engine, name, step)


def test_what_is_not_elementwise_is_refused_on_vectors(tmp_path):
    for results in run_ranks(refused_on_vectors, 2, tmp_path):
        assert set(results) == {(engine, name) for engine, names in ON_VECTORS.items() for name in names}
        for (engine, name), (said, same) in results.items():
            assert "UnsupportedShardingError" in said and "elementwise base" in said, (engine, name, said)
            assert same, (engine, name)


def test_the_cases_are_what_they_are_called(single):
    assert [sorted(single[name]["reports"]) for name in ("nadam", "unlike")] == [[1, 3, 5], [1, 2, 3, 5]]
    assert set(single["frozen"]["reports"][1]) == {"first.wide", "first.one", "third.tall"}
    moved = {layer.scales for layer in single["rmsprop"]["reports"][5].values()}
    assert len(moved) > 3
    assert case_of("lamb").base == "lamb" and case_of("live").options == {"labels": "live"}
    assert torch.isfinite(single["muon"]["weights"]["first.wide"]).all()
