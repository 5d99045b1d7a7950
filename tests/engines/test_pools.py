"""Pools of LoRA's matrices under FSDP1 and DeepSpeed ZeRO are those of one process.

Guards against matrices that lose their names in the vectors that these engines make, pools that are cut apart by where
their matrices lie, and ranks with nothing of a matrix that do not take part.
"""

import pytest

from tests.engines.cases_pools import everything, train
from tests.engines.launch import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(everything, 2, tmp_path_factory.mktemp("pools"))


def test_pools_are_those_of_one_process(ranks):
    _, alone = train(None)
    assert [len(pool.pooled) for pool in alone.layers] == [2] * 8
    assert [pool.name.split(".")[3:] for pool in alone.layers[:2]] == [
        ["self_attn", "*", f"lora_{kind}", "default"] for kind in "AB"
    ]
    expected = {pool.pooled: pool for pool in alone.layers}
    engines = set()
    for results in ranks:
        for kind, (engine, report) in results.items():
            engines.add(engine)
            assert report.step == alone.step and {pool.pooled for pool in report.layers} == expected.keys(), kind
            for pool in report.layers:
                one = expected[pool.pooled]
                assert pool.counts == one.counts and pool.numel == one.numel, (kind, pool.name)
                # Gradients are summed in another order, which a median within one bin may show.
                assert pool.scales == pytest.approx(one.scales, rel=1e-4), (kind, pool.name)
    assert engines == {"FullyShardedDataParallel", "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3"}


def test_every_rank_decides_the_same(ranks):
    assert ranks[0] == ranks[1]
