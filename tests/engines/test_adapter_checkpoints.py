"""Checkpoints of SGG around any optimizer under FSDP2, FSDP1 and DeepSpeed ZeRO.

Guards against scales and labels that come back in another layer's place or not at all, clocks and counts that start
anew, and state that DeepSpeed's universal checkpoint has lost.
"""

import pytest
import torch

from tests.engines.cases_adapter_checkpoints import SAVED, TORCH, UNIVERSAL, ZERO, resume, save
from tests.engines.cases_adapters import alone
from tests.engines.launch import run_ranks
from tests.engines.test_dgs import assert_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("adapter_checkpoints")


@pytest.fixture(scope="module")
def saved(folder):
    return run_ranks(save, 2, folder / "save", str(folder / "all"))


@pytest.fixture(scope="module")
def resumed(saved, folder):
    return run_ranks(resume, 2, folder / "resume", str(folder / "all"))


@pytest.mark.parametrize("key", [*TORCH, *ZERO], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(saved, resumed, key):
    for before, after in zip(saved, resumed, strict=True):
        assert after[key]["said"] == []
        assert after[key]["reports"] == before[key]["reports"] and len(before[key]["reports"]) >= 2
        for name, weight in before[key]["weights"].items():
            assert torch.equal(after[key]["weights"][name], weight), name


def test_saving_changes_nothing(saved):
    """The runs that were saved in the middle end where one process ends that was not."""
    single = alone({key[1] for key in [*TORCH, *ZERO]})
    for results in saved:
        for key, result in results.items():
            if key not in UNIVERSAL:
                assert min(result["reports"]) >= SAVED
                assert_weights(result["weights"], single[key[1]]["weights"], 1e-5, key)


@pytest.mark.parametrize("key", UNIVERSAL, ids=str)
def test_deepspeeds_universal_checkpoint_is_refused(resumed, key):
    for results in resumed:
        assert (
            "UnsupportedShardingError: DeepSpeed's universal checkpoint cannot be loaded" in results["universal"][key]
        )
