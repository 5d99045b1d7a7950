"""Checkpoints of DeepSpeed ZeRO in plain DeepSpeed loops: the ordinary one, and the universal one.

Guards against state that comes back in part or rounded, labels taken for those of another grouping, options of one
param group that end in another, a clock that stands still or runs fast, and damage that is loaded.
"""

import re

import pytest
import torch

from tests.engines.cases_zero_checkpoints import (
    DAMAGES,
    UNIVERSAL_DAMAGES,
    VARIANTS,
    VARIED,
    on_one,
    on_three,
    resume,
    save,
)
from tests.engines.launch import run_ranks
from tests.engines.loops_zero import KINDS, SAVED_AT, STEPS, is_same, make_model, make_optimizer
from tests.optim.training import batches, train

SCALED = ["0.weight", "1.weight", "4.weight"]
GROUPED = {6: ["4.weight"], 8: ["0.weight", "1.weight"], 9: ["4.weight"]}
OURS = [f"{zero} {name}" for zero in VARIED for name in VARIANTS if name != "plain AdamW"]
NO_LABELS = r"has scales but no labels for 3 layers .* all layers are grouped at the first step"
NO_SCALES = r"no groups for 3 layers .* their scales start at 1 until the next grouping"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def saved(folder):
    return run_ranks(save, 2, folder / "save", str(folder / "all"))


@pytest.fixture(scope="module")
def resumed(saved, folder):
    return run_ranks(resume, 2, folder / "resume", str(folder / "all"))


@pytest.fixture(scope="module")
def three(saved, folder):
    return run_ranks(on_three, 3, folder / "three", str(folder / "all"))


@pytest.fixture(scope="module")
def one(saved, folder):
    return run_ranks(on_one, 1, folder / "one", str(folder / "all"))[0]


@pytest.fixture(scope="module")
def without_labels():
    """One process without any engine that loses its labels where the checkpoint is."""
    model = make_model()
    optimizer = make_optimizer(model)
    train(model, optimizer, batches(SAVED_AT))
    state_dict = optimizer.state_dict()
    for state in state_dict["state"].values():
        state.pop("labels", None)
    with pytest.warns(UserWarning, match=NO_LABELS):
        optimizer.load_state_dict(state_dict)
    return train(model, optimizer, batches(STEPS, start=SAVED_AT))


def test_the_engine_is_the_one_named(saved, resumed, three, one):
    names = {3: "DeepSpeedZeroOptimizer_Stage3", 2: "DeepSpeedZeroOptimizer", 1: "DeepSpeedZeroOptimizer"}
    for results in (*saved, *resumed, *three, one):
        for zero in set(KINDS) & set(results):
            end, config = results[zero]["end"], KINDS[zero]["zero"]
            kind = "BF16_Optimizer" if zero == "bf16 optimizer" else names[config["stage"]]
            assert (end["kind"], end["stage"]) == (kind, config["stage"])
            assert len(end["fp32"]) == (5 if "sub_group_size" in config else 4)
            assert {flat.dtype for flat in end["fp32"]} == {torch.float32}


@pytest.mark.parametrize("tag", [*KINDS, *OURS])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(saved, resumed, tag):
    for before, after in zip(saved, resumed, strict=True):
        assert after[tag]["said"] == []
        assert is_same(before[tag]["saved"], after[tag]["loaded"])
        assert after[tag]["losses"] == before[tag]["losses"]
        assert after[tag]["grouped"] == before[tag]["grouped"]
        assert is_same(before[tag]["end"], after[tag]["end"])


@pytest.mark.parametrize("zero", KINDS)
def test_what_is_compared_has_labels_scales_groupings_and_a_clock(saved, zero):
    for results in saved:
        assert results[zero]["grouped"] == GROUPED
        state = results[zero]["saved"]["state"][0]
        assert state["labels"].unique().numel() == 3 and state["labels"].dtype == torch.uint8
        assert (state["scales"] != 1).any() and state["boundaries"].isfinite().all()
        assert clock(results[zero]["saved"]) == {SAVED_AT} and clock(results[zero]["end"]) == {STEPS}


def test_variants_are_what_they_are_called(saved):
    for results in saved:
        for zero in VARIED:
            first = {name: results[f"{zero} {name}"]["saved"]["state"][0] for name in VARIANTS}
            assert first["before any step"] == {}
            assert bool((first["before the first grouping"]["scales"] == 1).all())
            assert "labels" not in first["live labels"] and bool((first["live labels"]["scales"] != 1).any())
            assert set(first["one cluster"]) == set(first["plain AdamW"]) == {"step", "exp_avg", "exp_avg_sq"}
            assert results[f"{zero} one cluster"]["grouped"] == {}
            assert "max_exp_avg_sq" in first["amsgrad"]


@pytest.mark.parametrize("zero", VARIED)
def test_a_checkpoint_of_plain_adamw_loads_with_a_message_and_trains_on(saved, resumed, zero):
    for before, after in zip(saved, resumed, strict=True):
        theirs, ours = before[f"{zero} plain AdamW"], after[f"{zero} plain AdamW"]
        (text,) = ours["said"]
        assert_matches(text, NO_SCALES)
        for mine, plain in zip(ours["loaded"]["state"], theirs["saved"]["state"], strict=True):
            assert all(torch.equal(mine[key], value) for key, value in plain.items())
        # The first step has scales of 1; at the second, the first layer is grouped.
        assert ours["losses"][:2] != theirs["losses"][:2]
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-2)  # scales and Nesterov's momentum
        assert ours["grouped"] == GROUPED and clock(ours["end"]) == {STEPS}
        assert [group["weight_decay"] for group in ours["end"]["options"]] == [0.01, 0.02, 0.01, 0.0]


def test_our_checkpoint_loads_into_plain_adamw(saved, resumed):
    for before, after in zip(saved, resumed, strict=True):
        ours, theirs = before["zero2"], after["plain from ours"]
        for mine, plain in zip(ours["saved"]["state"], theirs["loaded"]["state"], strict=True):
            assert all(torch.equal(mine[key], plain[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
        assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-2)


@pytest.mark.parametrize("name", [*DAMAGES, "groups in another order", "another model"])
@pytest.mark.parametrize("zero", VARIED)
def test_what_does_not_fit_is_refused_before_anything_in_the_optimizer_changes(resumed, zero, name):
    # A model of other layers, and groups of other sizes, are refused by DeepSpeed and torch before we see them.
    expected = {"an option out of range": "OptionError: betas", "another model": "RuntimeError: .*loading state_dict"}
    if name == "groups in another order":
        expected[name] = "ValueError|RuntimeError: The ZeRO checkpoint parameter-alignment layout does not match"
    for results in resumed:
        text, unchanged = results["refused"][zero][name]
        assert_matches(text, expected.get(name, "ValueError: the loaded .* Nothing was loaded"))
        assert unchanged


@pytest.mark.parametrize("zero", VARIED)
def test_deepspeed_refuses_an_ordinary_checkpoint_of_another_number_of_ranks(three, zero):
    refused = r"ZeRORuntimeException: .* DP world size of 2 .* world size is 3"
    # With ZeRO 3 the rank that was not there when it was saved finds no file.
    expected = [refused, refused, "AssertionError" if zero.startswith("zero3") else refused]
    for results, pattern in zip(three, expected, strict=True):
        assert_matches(results[f"{zero} ordinary"], pattern)


def test_a_universal_checkpoint_brings_back_weights_moments_and_scales(saved, elsewhere):
    zero, ranks = elsewhere
    rows = [row for state in saved[0][zero]["saved"]["state"] if "scales" in state for row in state["scales"].tolist()]
    for results in ranks:
        expected = saved[0][zero]["whole"]
        assert results["whole"].keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in results["whole"].items())
        # They are taken from there at the first step.
        assert [results["loaded"]["options"][0]["layers"][name]["scales"] for name in SCALED] == rows


def test_layers_of_a_universal_checkpoint_are_grouped_at_the_first_step_with_one_warning(elsewhere):
    for results in elsewhere[1]:
        (text,) = results["said"]
        assert_matches(text, NO_LABELS)
        assert results["grouped"] == {**GROUPED, 6: SCALED}


def test_a_universal_checkpoint_keeps_the_clock_and_the_options_of_every_group(saved, elsewhere):
    zero, ranks = elsewhere
    for results in ranks:
        assert clock(results["end"]) == {STEPS}
        assert results["end"]["options"] == saved[0][zero]["end"]["options"]


def test_a_run_from_a_universal_checkpoint_is_that_of_one_process_which_lost_its_labels(
    saved, elsewhere, without_labels
):
    zero, ranks = elsewhere
    before = saved[0][zero]["losses"]
    for results in ranks:
        if "bf16" in zero:
            # Gradients of other rows are rounded otherwise.
            assert results["losses"] == pytest.approx(before, rel=2e-3)
            continue
        assert results["losses"] == pytest.approx(without_labels, rel=1e-5)
        # The first loss is before the grouping; then layers have newer labels, and scales that moved once more.
        assert results["losses"][0] == pytest.approx(before[0], rel=1e-6)
        assert results["losses"] == pytest.approx(before, rel=2e-3)


@pytest.mark.parametrize("name", ["before the first grouping", "live labels", "one cluster"])
@pytest.mark.parametrize("zero", VARIED)
def test_a_universal_checkpoint_that_had_no_labels_goes_on_as_if_nothing_had_happened(saved, one, zero, name):
    results, before = one[f"{zero} {name}"], saved[0][f"{zero} {name}"]
    assert results["said"] == [] and results["grouped"] == before["grouped"]
    assert results["losses"] == pytest.approx(before["losses"], rel=1e-5)
    assert clock(results["end"]) == {STEPS} and results["end"]["options"] == before["end"]["options"]


@pytest.mark.parametrize("zero", VARIED)
def test_a_universal_checkpoint_of_plain_adamw_starts_with_scales_of_1(saved, one, zero):
    results, before = one[f"{zero} plain AdamW"], saved[0][f"{zero} plain AdamW"]
    assert_matches(results["said"][0], NO_SCALES)
    assert results["grouped"] == GROUPED and clock(results["end"]) == {STEPS}
    assert results["losses"][0] == pytest.approx(before["losses"][0], rel=1e-6)
    # DeepSpeed gives all groups the options of the first then; plain AdamW would go on with them in silence.
    overwritten = zero.startswith("zero3")
    decays = [group["weight_decay"] for group in results["end"]["options"]]
    assert decays == ([0.01] * 4 if overwritten else [0.01, 0.02, 0.01, 0.0])
    assert len(results["said"]) == 1 + overwritten
    if overwritten:
        assert_matches(results["said"][1], "ZeRO 3 gave them those of the first group")


@pytest.mark.parametrize("zero", VARIED)
def test_amsgrad_does_not_go_on_from_a_universal_checkpoint_that_cannot_take_its_maximum(one, zero):
    assert_matches(one[f"{zero} amsgrad"], "ValueError: .*universal checkpoint cannot take max_exp_avg_sq")


@pytest.mark.parametrize("zero", VARIED)
def test_a_checkpoint_saved_before_the_first_step_after_a_universal_one_is_as_good(three, zero):
    for results in three:
        again = results["saved again"][zero]
        (text,) = again["said"]
        assert_matches(text, NO_LABELS)
        assert again["losses"] == results[zero]["losses"] and again["grouped"] == results[zero]["grouped"]
        assert is_same(again["end"], results[zero]["end"])


def test_a_universal_checkpoint_loaded_in_the_middle_of_a_run_replaces_labels_and_scales(one):
    assert one["loaded in a run"] == [one["zero2"]["losses"]] * 2


@pytest.mark.parametrize("zero", VARIED)
def test_options_changed_after_loading_a_universal_checkpoint_stay(one, zero):
    changed = one["changed after loading"][zero]
    for mine, options in zip(changed, one[zero]["end"]["options"], strict=True):
        assert {**mine, "lr": 0, "steps": 0} == {**options, "lr": 0, "steps": 0}
    assert [options["lr"] for options in changed] == [1e-2, 1e-2, 1e-3, 1e-3]


@pytest.mark.parametrize("name", UNIVERSAL_DAMAGES)
@pytest.mark.parametrize("zero", VARIED)
def test_a_damaged_universal_checkpoint_is_refused_at_the_first_step(one, zero, name):
    text, unchanged = one[f"{zero} refused"][name]
    expected = {"an option out of range": "OptionError: betas", "other groups": "ValueError: the loaded param groups"}
    assert_matches(text, expected.get(name, "ValueError: the loaded .* Nothing was loaded"))
    assert unchanged


@pytest.fixture(params=[*((3, zero) for zero in KINDS), *((1, zero) for zero in VARIED)], ids=str)
def elsewhere(request, three, one):
    """What two ranks saved, on another number of ranks: the kind of ZeRO, and the results of each rank."""
    ranks, zero = request.param
    return zero, [one[zero]] if ranks == 1 else [results[zero] for results in three]


def clock(snapshot):
    """Steps by the count of every tensor and of every param group."""
    return {int(state["step"]) for state in snapshot["state"]} | {group["steps"] for group in snapshot["options"]}


def assert_matches(text, pattern):
    assert re.search(pattern, text), text
