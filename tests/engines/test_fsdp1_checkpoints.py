"""Checkpoints of torch's FSDP1, in every way that torch and accelerate offer, on real processes.

Guards against groups that are lost or mixed up where layers are cut otherwise than when they were saved, against ranks
that have nothing of a layer and so come back with another state of it, and against half-loaded state.
"""

import pytest

from tests.engines.cases_fsdp1_checkpoints import END, STOP, alike, on_1, on_2, on_3, on_4, started_on_1
from tests.engines.checkpoints_fsdp1 import KINDS
from tests.engines.launch import run_ranks

BOTH = (True, False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def from_1(folder):
    """Runs on one rank, and their checkpoints."""
    return run_ranks(started_on_1, 1, folder / "started on 1", folder)


@pytest.fixture(scope="module")
def two(folder, from_1):
    """Runs on two ranks, their checkpoints, and all resumes on two ranks."""
    return run_ranks(on_2, 2, folder / "on 2", folder)


@pytest.fixture(scope="module")
def three(folder, two):
    return run_ranks(on_3, 3, folder / "on 3", folder)


@pytest.fixture(scope="module")
def four(folder, two):
    """Hybrid sharding, in two groups of two ranks."""
    return run_ranks(on_4, 4, folder / "on 4", folder)


@pytest.fixture(scope="module")
def one(folder, two):
    return run_ranks(on_1, 1, folder / "on 1", folder)


def goes_on_alike(resumed, expected):
    return (
        alike(resumed["loaded"], expected["saved"])
        and alike(resumed["last"], expected["last"])
        and resumed["losses"] == expected["losses"]
        and resumed["said"] == []
    )


def goes_on_as_well(resumed, expected):
    """From the same state, on another number of ranks."""
    return (
        alike(resumed["loaded"], expected["saved"])
        and resumed["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        and resumed["said"] == []
    )


def test_the_engine_is_fsdp1_and_shards(two, three, four):
    for ranks in (two, three, four):
        for results in ranks:
            for key in {"resumed", "from 1", "from 2"} & results.keys():
                for (_, original, _), run in results[key].items():
                    assert run["sharded"] == [True, True] and run["vectors"] == [not original] * len(run["vectors"])
                    assert run["strategies"] == {"HYBRID_SHARD" if ranks is four else "FULL_SHARD"}
    assert [results["straight"][True]["here"] for results in two] == [[287, 69, 0, 0, 0, 123], [0, 22, 13, 13, 13, 410]]


def test_the_checkpoint_is_made_between_groupings(two):
    for original in BOTH:
        saved = two[0]["straight"][original]["saved"]
        assert [group["steps"] for group in saved["param_groups"]] == [STOP]
        assert {name for group in saved["param_groups"] for name in group["layers"]} == set(
            name for name, state in saved["state"].items() if state["labels"].any()
        )
        assert all(set(state) == {"step", "exp_avg", "exp_avg_sq", "labels"} for state in saved["state"].values())


def test_on_as_many_ranks_runs_go_on_bit_for_bit(two, four):
    assert {name for name, *_ in two[0]["resumed"]} == set(KINDS)
    for results in (*two, *four):
        for (name, original, saved_with), run in results["resumed"].items():
            # Also where `use_orig_params` was another one when it was saved.
            assert goes_on_alike(run, results["straight"][saved_with]), (name, original, saved_with)
            assert run["report"].step == END


def test_on_another_number_of_ranks_the_state_is_the_same_and_losses_are_close(from_1, two, three, four, one):
    for results in (*three, *four, *one):
        for (name, original, saved_with), run in results["from 2"].items():
            assert goes_on_as_well(run, two[0]["straight"][saved_with]), (name, original, saved_with)
    for results in two:
        for (name, original, saved_with), run in results["from 1"].items():
            assert goes_on_as_well(run, from_1[0][saved_with]), (name, original, saved_with)
    assert {name for name, *_ in three[0]["from 2"]} == set(KINDS)


def test_all_ranks_agree_after_a_resume(two, three, four):
    for ranks in (two, three, four):
        for key in {"resumed", "from 1", "from 2"} & ranks[0].keys():
            for pair, first in ranks[0][key].items():
                for results in ranks:
                    run = results[key][pair]
                    assert run["report"] == first["report"] and run["report"].step == END, pair
                    assert alike(run["last"], first["last"]), pair


def test_ranks_with_nothing_at_all_keep_the_scales_of_all_layers(three):
    assert [results["adapted"][0]["here"] for results in three] == [[0, 0], [36, 72], [0, 0]]
    for results in three:
        expected, resumed = results["adapted"]
        assert len(resumed) == 2 and all(goes_on_alike(run, expected) for run in resumed)


@pytest.mark.parametrize("name", ["live", "one cluster", "without names"])
def test_other_options_go_on_bit_for_bit(two, name):
    for results in two:
        cases = {key: case for key, case in results["others"].items() if key[0] == name}
        assert len(cases) == 4
        for key, (expected, resumed) in cases.items():
            assert goes_on_alike(resumed, expected), key
            assert (resumed["report"] is None) == (name == "one cluster")
            keys = {key for state in expected["saved"]["state"].values() for key in state}
            assert ("labels" in keys) == (name == "without names")


def test_a_run_that_has_not_begun_begins_as_it_would_have(two):
    for results in two:
        for original in BOTH:
            assert results["others"]["at the start", original] == {"full": ([], True), "sharded": ([], True)}


@pytest.mark.parametrize("case", [("adamw", True), ("adamw", False), ("adamw, adapted", True)])
def test_a_full_checkpoint_of_adamw_goes_on_with_a_message(two, case):
    said = [results["others"][case]["said"] for results in two]
    assert said[0] and all("has no groups for" in line for lines in said for line in lines)
    assert (said[1] == []) == (case[0] == "adamw, adapted")  # that rank has nothing of any layer
    for results in two:
        run = results["others"][case]
        assert all(run["moments"]) and len(run["moments"]) > 0
        # Before the next grouping, they are the same optimizer. It comes at step 12, so the clock was loaded, too.
        assert run["losses"][0] == pytest.approx(run["losses"][1], rel=1e-6) and run["grouped at"] == 12
        assert run["clock"] == [STOP]


def test_a_sharded_checkpoint_of_adamw_is_refused_by_torch_and_changes_nothing(two):
    for results in two:
        for original in BOTH:
            run = results["others"]["adamw", original]
            assert "Missing key in checkpoint state_dict: optim.state." in run["sharded"] and run["unchanged"]


def test_damaged_checkpoints_are_refused_before_anything_changes(two):
    for results in two:
        for original in BOTH:
            damaged = dict(results["others"]["damaged", original])
            # Where vectors hide the parameters, torch itself trips over the form.
            error, unchanged = damaged.pop("flattened")
            assert ("scales with {}" if original else "unhashable type") in error and unchanged
            assert len(damaged) == 8
            for name, (error, unchanged) in damaged.items():
                expected = "n_clusters=0 is not allowed" if name == "no clusters" else "Nothing was loaded."
                assert error is not None and expected in error and unchanged, (name, original)
