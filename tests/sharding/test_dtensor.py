"""FSDP2, hybrid and tensor-parallel layouts: groups of a sharded layer must be those of the whole layer, bit for bit.

rank 0 | rows 0-16 |         one all-reduce of integer counts, then the same decisions everywhere
rank 1 | rows 17-33 |  --->  labels, boundaries and scales as on one rank
rank 2 | (nothing)  |        a rank without rows takes part in every collective, or the others wait forever
"""

import pytest
import torch

from gradscale.optim.sgg_adam import SGGAdamW
from tests.engines.launch import run_ranks
from tests.optim.training import batches, make_model, train
from tests.sharding.cases_dtensor import ABLATIONS, LAYOUTS, OPTIONS, everything, fed

WORLDS = [2, 3, 4]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dtensor")
    return {world: run_ranks(everything, world, folder / str(world), str(folder)) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
def test_every_layout_on_any_number_of_ranks_is_one_rank_bit_for_bit(results, world):
    expected = {
        (labels, over): fed(None, None, labels=labels, global_mda=over)
        for labels in ("frozen", "live")
        for over in ("clusters", "parameters", "layer")
    }
    expected["frozen", "pools"] = fed(None, None, pool="lora")
    assert [len(layer.pooled) for layer in expected["frozen", "pools"][1].layers] == [2, 2, 0]
    names = set()
    for of_rank in results[world]:
        for (name, labels, over), (state, report) in of_rank["layouts"].items():
            names.add(name)
            alone, alone_report = expected[labels, over]
            assert report == alone_report
            for layer, tensors in alone.items():
                for key, value in tensors.items():
                    assert torch.equal(state[layer][key], value), (name, layer, key)
    assert names >= {"rows", "columns", "replicas"} and ("hybrid" in names) == (world == 4)


def test_other_groupings_and_statistics_of_shards_are_those_of_whole_layers_bit_for_bit(results):
    expected = [fed(None, None, steps=4, **options) for options in ABLATIONS]
    for of_rank in results[2]:
        found, refused = of_rank["ablations"]
        assert "grouping='static' needs whole layers" in refused
        for (state, report), (alone, alone_report) in zip(found, expected, strict=True):
            assert report == alone_report
            _assert_same(alone, state)


PLACEMENTS = {
    "fsdp2": {"(Shard(dim=0),)"},
    "tensor parallel": {"(Shard(dim=0),)"},
    "hsdp": {"(Replicate(), Shard(dim=0))"},
}
CASES = [(layout, world) for layout in LAYOUTS for world in WORLDS if layout != "hsdp" or world == 4]


@pytest.mark.parametrize("layout, world", CASES)
def test_training_equals_one_rank(results, layout, world):
    model = make_model()
    optimizer = SGGAdamW(model.parameters(), **OPTIONS, module=model)
    losses = train(model, optimizer, batches(20))
    for of_rank in results[world]:
        training = of_rank[layout]["training"]
        assert training["placements"] == PLACEMENTS[layout]
        assert training["losses"] == pytest.approx(losses, rel=1e-5)
        assert training["kinds"]["labels"] == training["kinds"]["exp_avg"] == "DTensor"
        assert training["report"].step == 18 == optimizer.grouping_report.step
        assert [(layer.name, layer.numel) for layer in training["report"].layers] == [
            (layer.name, layer.numel) for layer in optimizer.grouping_report.layers
        ]
        assert training["report"] == results[world][0][layout]["training"]["report"]


@pytest.mark.parametrize("layout, world", CASES)
def test_resume_through_a_distributed_checkpoint_is_bit_exact(results, layout, world):
    for of_rank in results[world]:
        saved, resumed = of_rank[layout]["saved"], of_rank[layout]["resumed"]
        assert resumed["made"] == {0}  # making state to load into counts as no step
        assert resumed["dtypes"] == saved["dtypes"] and saved["dtypes"]["labels"] == torch.uint8
        _assert_same(saved["at 5"], resumed["at 5"])
        assert saved["losses"] == resumed["losses"]


@pytest.mark.parametrize("layout, world", [case for case in CASES if case[1] != 2])
def test_resume_on_another_number_of_ranks(results, layout, world):
    saved = results[2][0]["fsdp2" if layout == "hsdp" else layout]["saved"]
    for of_rank in results[world]:
        resumed = of_rank[layout]["from 2"]
        _assert_same(saved["at 5"], resumed["at 5"])
        assert resumed["losses"] == pytest.approx(saved["losses"], rel=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_a_nan_on_one_rank_is_seen_by_all(results, world):
    for of_rank in results[world]:
        assert of_rank["non_finite"] == (("a",), ["b"], 1)


@pytest.mark.parametrize("world", WORLDS)
def test_partial_placements_are_refused(results, world):
    for of_rank in results[world]:
        message, states = of_rank["refused"]
        assert "placement" in message and "FSDP" in message and states == 0


@pytest.mark.parametrize("world", WORLDS)
def test_state_survives_saving(results, world):
    for of_rank in results[world]:
        assert of_rank["copies"] == (True, "gloo")


def _assert_same(saved, loaded):
    for layer, tensors in saved.items():
        assert set(tensors) == set(loaded[layer])
        for key, value in tensors.items():
            assert torch.equal(value, loaded[layer][key]), (layer, key)
