"""Checkpoints of DGS's running importance under FSDP2, FSDP1 and DeepSpeed ZeRO.

Guards against importance that comes back without what is known of its layer, or in another layer's place, levels and
clocks that start anew, and damage that is loaded.
"""

import pytest
import torch

from tests.engines.cases_dgs import CASES, LAYERS, STEPS, Alone, Case, Fed, feed, optimizer_of
from tests.engines.cases_dgs_checkpoints import DAMAGES, SAVED, TORCH, UNIVERSAL, ZERO, resume, resume_alone, save
from tests.engines.launch import run_ranks
from tests.engines.test_dgs import assert_numbers, assert_weights

LOST = "the loaded state has no running importance for 9 layers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dgs_checkpoints")


@pytest.fixture(scope="module")
def saved(folder):
    return run_ranks(save, 2, folder / "save", str(folder / "all"))


@pytest.fixture(scope="module")
def resumed(saved, folder):
    return run_ranks(resume, 2, folder / "resume", str(folder / "all"))


@pytest.fixture(scope="module")
def on_three(saved, folder):
    return run_ranks(resume, 3, folder / "three", str(folder / "all"))


@pytest.fixture(scope="module")
def universal(saved, folder):
    return run_ranks(resume_alone, 1, folder / "one", str(folder / "all"))[0]


def going_on(lost=()):
    """One process that goes on from a state in memory, from which some keys have been taken."""
    model = Fed()
    run = Alone(model, optimizer_of(model, CASES["running"]))
    feed(run, stop=SAVED)
    state_dict = run.optimizer.state_dict()
    for state in state_dict["state"].values():
        for key in lost:
            del state[key]
    run.optimizer.load_state_dict(state_dict)
    return feed(run, start=SAVED)


@pytest.mark.parametrize("key", [*TORCH, *ZERO], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(saved, resumed, key):
    for before, after in zip(saved, resumed, strict=True):
        assert after[key]["said"] == []
        assert str(after[key]["numbers"]) == str(before[key]["numbers"])
        assert after[key]["weights"].keys() == before[key]["weights"].keys()
        for name, weight in after[key]["weights"].items():
            assert torch.equal(weight, before[key]["weights"][name]), name


def test_what_is_compared_needs_all_of_the_state(saved):
    """The spike is seen by the level before the checkpoint, and the periodic reset comes with its clock."""
    for results in saved:
        for key, result in results.items():
            if "running" in key:
                rows = [numbers["first.wide"] for numbers in result["numbers"]]
                assert [row[4] for row in rows] == pytest.approx([0.1, 0.1, 1.0]), key
                assert rows[0][3] < 1 - 0.8 + 0.1  # the past weighs a tenth


@pytest.mark.parametrize("key", TORCH, ids=str)
def test_a_run_goes_on_with_another_number_of_ranks(saved, on_three, key):
    for results in on_three:
        assert results[key]["said"] == []
        assert_numbers(results[key]["numbers"], saved[0][key]["numbers"], 1e-12, key)
        assert_weights(results[key]["weights"], saved[0][key]["weights"], 1e-6, key)


@pytest.mark.parametrize("kind", dict.fromkeys(kind for kind, _ in UNIVERSAL))
def test_a_universal_checkpoint_of_deepspeed_loses_the_running_importance_and_says_so(universal, kind):
    with pytest.warns(UserWarning, match=LOST):
        expected = going_on(lost=["importance"])
    result = universal[kind, "running"]
    assert len(result["said"]) == 1 and result["said"][0].startswith(LOST)
    assert_numbers(result["numbers"], expected["numbers"], 1e-12, kind)
    assert_weights(result["weights"], expected["weights"], 1e-6, kind)
    # It starts anew: all of the importance is that of today's gradient.
    assert [row[3] for row in result["numbers"][0].values()] == pytest.approx([0.2] * LAYERS)


@pytest.mark.parametrize("kind", dict.fromkeys(kind for kind, _ in UNIVERSAL))
def test_without_a_running_importance_nothing_is_lost_in_a_universal_checkpoint(saved, universal, kind):
    result, before = universal[kind, "normalized"], saved[0][kind, "normalized"]
    assert result["said"] == []
    assert_numbers(result["numbers"], before["numbers"], 1e-12, kind)
    assert_weights(result["weights"], before["weights"], 1e-6, kind)


@pytest.mark.parametrize("lost", [["importance"], ["importance_history"], ["importance", "importance_history"]])
def test_importance_and_what_is_known_of_its_layer_start_anew_together(lost):
    with pytest.warns(UserWarning, match=LOST):
        result = going_on(lost)
    with pytest.warns(UserWarning, match=LOST):
        assert result["numbers"] == going_on(["importance"])["numbers"]
    assert result["numbers"] != going_on()["numbers"] and len(result["numbers"]) == STEPS - SAVED


def test_the_state_of_plain_adamw_goes_on_with_a_new_importance():
    model = Fed()
    plain = torch.optim.AdamW(model.parameters(), lr=1e-3)
    feed(Alone(model, plain), stop=1)
    optimizer = optimizer_of(model, Case("running"), groups=None)
    with pytest.warns(UserWarning, match=LOST):
        optimizer.load_state_dict(plain.state_dict())
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}
    result = feed(Alone(model, optimizer), start=1, stop=2)
    assert [row[3] for row in result["numbers"][0].values()] == pytest.approx([0.2] * LAYERS)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(resumed, name):
    for results in resumed:
        text, unchanged = results["damaged"][name]
        assert text.startswith("ValueError: the loaded ") and text.endswith("Nothing was loaded.")
        assert "importance_history" in text and unchanged
