"""Engines that are not supported say so on every rank, before anything has changed."""

from tests.engines.cases_refused import fsdp1
from tests.engines.launch import run_ranks


def test_fsdp1(tmp_path):
    for results in run_ranks(fsdp1, 2, tmp_path):
        assert len(results) == 3
        for error, states in results.values():
            assert error.startswith("UnsupportedShardingError: parameters flattened by FSDP1 are not supported.")
            assert "with DDP or with FSDP2" in error and states == 0
