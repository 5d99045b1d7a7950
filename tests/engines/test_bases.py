"""SGG on SGD, Lion and LAMB under DDP, FSDP2, FSDP1, hybrid sharding, tensor parallel and DeepSpeed ZeRO.

    gradients of all tensors   -> momenta (kept, or made anew for a layer at a time) -> one grouping
    moments of all tensors     -> sums over each layer's update -> one all-reduce    -> trust ratios

Guards against gradients that an engine takes away before the grouping, norms of shards instead of layers, tensors that
move before the others' sums are known, and state that does not come back.
"""

import pytest
import torch

from tests.engines.cases_bases import (
    CASES,
    PARALLEL,
    PLAIN,
    SAVED,
    SAVES,
    SAVES_OF_ZERO,
    TORCH,
    TRAINED,
    UNIVERSAL,
    ZERO,
    alone,
    everything,
    resume,
    resume_alone,
    save,
    trained_alone,
)
from tests.engines.cases_dgs import SHAPES, STEPS, Alone, Fed, feed, optimizer_of
from tests.engines.launch import run_ranks
from tests.engines.test_dgs import FACTS as FACTS_OF_TORCH
from tests.engines.test_dgs import assert_weights
from tests.engines.test_dgs_zero import FACTS as FACTS_OF_ZERO

WORLDS = list(TORCH)
MATRICES = sum(len(shape) >= 2 for shape in SHAPES.values())
GROUPED = 6  # the last grouping
NO_LABELS = "the loaded state has scales but no labels for"


@pytest.fixture(scope="module")
def single():
    return alone()


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request, tmp_path_factory):
    return run_ranks(everything, request.param, tmp_path_factory.mktemp(f"bases{request.param}"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def saved(folder):
    return run_ranks(save, 2, folder / "save", str(folder / "all"))


@pytest.fixture(scope="module")
def on_three(saved, folder):
    return run_ranks(resume, 3, folder / "three", str(folder / "all"))


@pytest.fixture(scope="module")
def on_one(saved, folder):
    return run_ranks(resume_alone, 1, folder / "one", str(folder / "all"))[0]


def results_of(ranks):
    """Engine, name of the case and result of everything that was fed, of all ranks."""
    return [
        (engine, name, result)
        for results in ranks
        for engine, cases in (results["torch"] | results["zero"]).items()
        for name, result in cases.items()
    ]


def test_every_case_was_run_under_the_engine_that_is_named(ranks):
    world = len(ranks)
    expected = TORCH[world] | ZERO[world]
    for results in ranks:
        found = {engine: tuple(cases) for engine, cases in (results["torch"] | results["zero"]).items()}
        assert found == expected and tuple(results["parallel"]) == PARALLEL[world]
    for engine, name, result in results_of(ranks):
        facts = (FACTS_OF_TORCH | FACTS_OF_ZERO)[engine]
        assert {key: result["facts"][key] for key in facts} == facts, (engine, name)


def test_the_same_gradients_give_the_same_groups_and_weights(single, ranks):
    """Clusters and scales bit for bit: momenta are the same, and what is summed over ranks are integers."""
    for engine, name, result in results_of(ranks):
        expected = single[name]
        assert_weights(result["weights"], expected["weights"], 1e-6, (engine, name))
        if name.startswith("sgd"):  # weight decay brings the rounding of weights into momenta
            assert_groups(result["report"], expected["report"], (engine, name))
        else:
            assert result["report"] == expected["report"], (engine, name)


def test_all_ranks_decide_the_same(ranks):
    first = {(engine, name): result["report"] for engine, name, result in results_of(ranks[:1])}
    for engine, name, result in results_of(ranks[1:]):
        assert result["report"] == first[engine, name], (engine, name)


def test_the_cases_are_what_they_are_called(single):
    for name, result in single.items():
        if "one cluster" in name:
            assert result["report"] is None
            continue
        step, _, layers = result["report"]
        # A gradient that is not there is not grouped; a momentum is.
        assert step == GROUPED and len(layers) == MATRICES - (name == "sgd, unused"), name
        assert any(scale != 1 for layer in layers.values() for scale in layer.scales)
    start = dict(Fed().named_parameters())
    for name in ("lamb", "lamb, one cluster"):
        assert not torch.equal(single[name]["weights"]["second.conv"], start["second.conv"])
    weights = [single[name]["weights"]["first.bias"] for name in ("lamb", "lamb, vectors")]
    assert not torch.equal(*weights)


def test_lamb_sends_two_numbers_for_each_layer_with_a_ratio_in_one_all_reduce(ranks):
    for engine, name, result in results_of(ranks):
        if name.startswith("lamb") and engine not in ("ddp", "fsdp1 no shard"):
            layers = len(SHAPES) if "vectors" in name else MATRICES
            for step in range(1, STEPS):
                sent = result["sent"][step]
                groups = "one cluster" not in name and (step + 1) % 3 == 0
                assert sent[-1] == 2 * 8 * layers and (len(sent) > 1) == groups, (engine, name, step)


def test_training_with_tensor_parallel_equals_one_process(ranks):
    expected = trained_alone()
    for results in ranks:
        for engine, cases in results["parallel"].items():
            assert set(cases) == set(TRAINED)
            for name, result in cases.items():
                assert result["facts"]["placements"] == FACTS_OF_TORCH[engine]["placements"], (engine, name)
                assert result["losses"] == pytest.approx(expected[name]["losses"], rel=1e-4), (engine, name)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("engine", [*SAVES, *SAVES_OF_ZERO])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(saved, engine, name):
    for results in saved:
        before, after = results["straight"][engine, name], results["resumed"][engine, name]
        assert after["said"] == [] and after["report"] == before["report"]
        for key, weight in after["weights"].items():
            assert torch.equal(weight, before["weights"][key]), key


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("engine", SAVES)
def test_a_run_goes_on_with_another_number_of_ranks(saved, on_three, engine, name):
    for results in on_three:
        assert results[engine, name]["said"] == []
        assert_groups(results[engine, name]["report"], saved[0]["straight"][engine, name]["report"], (engine, name))
        assert_weights(
            results[engine, name]["weights"], saved[0]["straight"][engine, name]["weights"], 1e-6, (engine, name)
        )


@pytest.mark.parametrize("zero", UNIVERSAL)
def test_a_universal_checkpoint_of_lamb_goes_on_with_another_number_of_ranks(on_one, zero):
    model = Fed()
    run = Alone(model, optimizer_of(model, CASES["lamb"]))
    feed(run, stop=SAVED)
    state_dict = run.optimizer.state_dict()
    for state in state_dict["state"].values():
        state.pop("labels", None)
    with pytest.warns(UserWarning, match=NO_LABELS):
        run.optimizer.load_state_dict(state_dict)
    expected = feed(run, start=SAVED)
    (text,) = on_one[zero]["said"]
    assert text.startswith(NO_LABELS)
    assert_weights(on_one[zero]["weights"], expected["weights"], 1e-6, zero)


def test_deepspeed_converts_nothing_but_adams_moments(saved):
    """Its own converter asks every tensor for both: a universal checkpoint of Lion or SGD cannot be made."""
    assert "exp_avg_sq" in saved[0]["refused"]


def assert_groups(found, expected, where):
    assert found[0] == expected[0] and set(found[2]) == set(expected[2]), where
    for name, layer in found[2].items():
        assert layer.counts == expected[2][name].counts, (*where, name)
        assert layer.scales == pytest.approx(expected[2][name].scales, rel=1e-5), (*where, name)
