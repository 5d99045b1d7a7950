"""Bases of other libraries, by name, under FSDP2: they train as in one process, or say that they cannot.

Guards against a base that takes a shard for the layer without a word.
"""

import pytest

from gradscale.adapter.named.base import NamedAdapter
from gradscale.registry import get_entry
from tests.adapter.named_bases import OPTIONS
from tests.engines.cases_named import on_shards, train
from tests.engines.launch import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(on_shards, 2, tmp_path_factory.mktemp("named"))


@pytest.mark.parametrize("name", OPTIONS)
def test_it_trains_on_shards_as_in_one_process_or_is_refused(name, ranks):
    kind = get_entry(name).load()
    assert issubclass(kind, NamedAdapter)
    for result in (one[name] for one in ranks):
        if not kind.takes_shards:
            assert "UnsupportedShardingError" in result["refused"] and "use DDP" in result["refused"]
            continue
        assert result["refused"] == ""
        alone = train(name)
        assert result["scales"].keys() == alone["scales"].keys()
        # What has fewer than 4096 elements here, and more as a whole, is kept in full here, and there in a few bits.
        rounding = {"sgg_adamw_torch_8bit": 0.1, "sgg_adamw_torch_4bit": 0.4}.get(name, 0.02)
        for layer, scales in alone["scales"].items():
            assert result["scales"][layer] == pytest.approx(scales, rel=max(0.05, rounding)), layer
        for key, right in alone["found"].items():
            moved = float((right - alone["start"][key]).norm())
            share = min(rounding, 0.1) if key == "up.weight" else rounding  # its halves have whole blocks
            assert float((result["found"][key] - right).norm()) < share * moved, key


def test_all_ranks_have_the_same_scales(ranks):
    first, second = ranks
    assert all(first[name].get("scales") == second[name].get("scales") for name in OPTIONS)
