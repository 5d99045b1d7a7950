"""DeepSpeed ZeRO on real ranks: the groups of whole layers, whatever flat tensors their elements are in.

    param group       embed, two             one         mix, head
    whole             eeeeeeeeeeeeeett       o           mmmhhhhhhhhhh
    rank 0            eeeeeeeee              op          mmmhhhh           one flat tensor for each param group (ZeRO 1
    rank 1                     eeeeettpp       pp               hhhhhh     and 2), and a call of step() for each of them

Guards against elements of one layer taken for another's, groups of parts instead of layers, calls of `step()` counted
as training steps, updates that the model never sees, and settings that only look supported.
"""

from collections import Counter

import pytest
import torch

from tests.engines.cases_deepspeed import FEW, KINDS, STEPS, VARIED, VARIED_KINDS, alone
from tests.engines.cases_deepspeed_refused import ATTEMPTS, OVERFLOWS, everything
from tests.engines.launch import run_ranks

WORLDS = [1, 2, 3, 4]
TWO = {
    "class": "DeepSpeedZeroOptimizer",
    "stage": 2,
    "gradients partitioned": True,
    "round robin": False,
    "offload": False,
}
THREE = {"class": "DeepSpeedZeroOptimizer_Stage3", "stage": 3, "offload": False, "parameters offloaded": False}
ENGINES = {
    "stage 0": {"class": "SGGAdamW"},
    "zero1": {**TWO, "stage": 1, "gradients partitioned": False},
    "zero2": TWO,
    "zero2 round robin": {**TWO, "round robin": True},
    "zero2 offload": {**TWO, "offload": True},
    "zero3": {**THREE, "tensors": 4, "partitioned at once": 0, "kept whole": 8},
    "zero3 small": {**THREE, "partitioned at once": 0, "kept whole": 0},
    "zero3 offload": {**THREE, "offload": True, "parameters offloaded": True},
    "zero3 init": {**THREE, "partitioned at once": 8, "kept whole": 0},
    "bf16 optimizer": {"class": "BF16_Optimizer", "stage": 1, "dtype": torch.bfloat16},
    "zero2 bf16": {**TWO, "dtype": torch.bfloat16},
    "zero3 bf16": {**THREE, "dtype": torch.bfloat16},
}
UNEVEN = {"embed.weight", "two", "one", "mix.weight", "head.weight"}
GROUPED = {
    "tied": dict.fromkeys((4, 8, 12), {"embed.weight", "mix.weight"}),
    "adapters": dict.fromkeys((4, 8, 12), {"down.weight", "up.weight"}),
    "adapters, all given": {
        **dict.fromkeys((3, 6, 9), {"up.weight"}),
        **dict.fromkeys((4, 8), {"down.weight"}),
        12: {"down.weight", "up.weight"},
    },
    "target_modules": dict.fromkeys((4, 8, 12), {"mix.weight", "head.weight"}),
    "unused": dict.fromkeys((4, 8, 12), {f"base.{name}" for name in UNEVEN} | {"extra.weight"}),
    "intervals": {
        **dict.fromkeys((3, 6, 9), {"embed.weight", "two"}),
        **dict.fromkeys((4, 8), {"one"}),
        **dict.fromkeys((5, 10), {"mix.weight", "head.weight"}),
        12: {"embed.weight", "two", "one"},
    },
    "one cluster": {},
}
FLOAT32 = [kind for kind in KINDS if "bf16" not in kind]


@pytest.fixture(scope="module")
def single():
    return alone()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    return {world: run_ranks(everything, world, folder / str(world)) for world in WORLDS}


def cases(results):
    """Name and result of every training of a rank: of all kinds, and (kind, case) of some."""
    return [*results["trained"].items(), *results["varied"].items()]


def test_every_case_was_run(single, ranks):
    for world in WORLDS:
        for results in ranks[world]:
            kinds = set(KINDS) if world in (2, 3) else set(FEW)
            assert set(results["trained"]) == set(results["fed"]) == kinds <= set(ENGINES)
            assert set(results["varied"]) == {(kind, case) for kind in VARIED_KINDS.get(world, ()) for case in VARIED}
    assert set(single["varied"]) == set(VARIED)


@pytest.mark.parametrize("world", WORLDS)
def test_the_engine_is_the_one_named(ranks, world):
    for results in ranks[world]:
        for kind, result in results["trained"].items():
            engine = result["engine"]
            assert engine == {**engine, **ENGINES[kind]}, kind
            assert engine.get("dtype", torch.float32) == ENGINES[kind].get("dtype", torch.float32)
            # Layers of one param group are in several sub-groups, and layers of several groups are grouped together.
            assert "small" not in kind or engine["tensors"] > 5
            calls = engine["tensors"] if "zero" in kind else 1
            assert Counter(result["calls"]) == dict.fromkeys(range(STEPS), calls), kind


@pytest.mark.parametrize("world", WORLDS)
def test_training_equals_one_process(single, ranks, world):
    for results in ranks[world]:
        for kind, result in results["trained"].items():
            assert result["report"].step == single["trained"]["report"].step == STEPS
            assert layers(result) == layers(single["trained"])
            if kind in FLOAT32:
                assert result["losses"] == pytest.approx(single["trained"]["losses"], rel=1e-5), kind
        for (kind, case), result in results["varied"].items():
            assert layers(result) == layers(single["varied"][case])
            # ZeRO 3 itself, with any optimizer, gives a parameter that a step does not use its last gradient again.
            if kind in FLOAT32 and (kind, case) != ("zero3 small", "unused"):
                assert result["losses"] == pytest.approx(single["varied"][case]["losses"], rel=1e-5), (kind, case)


@pytest.mark.parametrize("world", WORLDS)
def test_every_grouping_is_that_of_the_whole_layers_bit_for_bit(single, ranks, world):
    for name, result in cases(ranks[world][0]):
        expected = single["varied"][name[1]] if isinstance(name, tuple) else single["trained"]
        assert result["wrong"] == expected["wrong"] == [], name
        assert list(result["decided"]) == list(expected["decided"]), name
        assert len(result["decided"]) >= 3 or name[1] == "one cluster"


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_decide_alike_and_end_with_the_same_weights(ranks, world):
    first = dict(cases(ranks[world][0]))
    for results in ranks[world][1:]:
        for name, result in cases(results):
            assert result["decided"] == first[name]["decided"], name
            assert_same(result["weights"], first[name]["weights"], name)


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_gradients_give_the_same_bits_on_any_number_of_ranks_under_any_engine(single, ranks, world):
    expected = single["fed"]
    assert len(expected["rows"]) == 7 and expected["report"].step == 6
    assert any((expected["whole"][name, "labels"] == 2).any() for name in expected["rows"])
    for results in ranks[world]:
        for kind, result in results["fed"].items():
            assert_same(result["whole"], expected["whole"], kind)
            assert result["rows"] == expected["rows"], kind
            assert result["report"].global_mda == expected["report"].global_mda, kind
            assert set(result["report"].layers) == set(expected["report"].layers), kind


@pytest.mark.parametrize("world", WORLDS)
def test_a_grouping_is_one_all_reduce_of_counts_and_other_steps_send_nothing(ranks, world):
    counted = {name: [counts for counts, _ in result["sent"]] for name, result in cases(ranks[world][0])}
    for results in ranks[world]:
        for name, result in cases(results):
            sent = [sizes for _, sizes in result["sent"]]
            if world == 1 or name == "stage 0":
                assert not any(sent)
                continue
            # The self-check of the first step: four integers for each layer, and one for each tensor.
            first = next(step for step, sizes in enumerate(sent) if sizes)
            assert len(sent[first]) <= 2 and not counted[name][first]
            assert sum(sent[first]) <= 8 * (4 * len(result["weights"]) + 2 * result["engine"]["tensors"]), name
            # More than one where layers with few elements were counted again, which the whole layers are as well.
            assert sent[first + 1 :] == counted[name][first + 1 :], name
            assert {len(counts) for counts in counted[name] if counts} <= {1, 2, 3, 4}
        assert any(counts for name in counted for counts in counted[name])


@pytest.mark.parametrize("case", VARIED)
def test_which_layers_are_grouped_when(ranks, case):
    for world, kinds in VARIED_KINDS.items():
        for results in ranks[world]:
            for kind in kinds:
                decided = results["varied"][kind, case]["decided"]
                found = {step: {layer.name for layer in report.layers} for step, (report, _) in decided.items()}
                assert found == GROUPED.get(case, dict.fromkeys((4, 8, 12), UNEVEN)), kind
                clusters = {len(layer.scales) for report, _ in decided.values() for layer in report.layers}
                assert clusters == ({1} if case == "layer" else {3} if decided else set())


@pytest.mark.parametrize("name", OVERFLOWS)
def test_a_step_skipped_for_an_overflow_changes_nothing(ranks, name):
    kind, settings = OVERFLOWS[name]
    for results in ranks[2]:
        result = results["overflow"][name]
        assert result["engine"]["class"] == ENGINES[kind]["class"]
        assert result["engine"]["dtype"] == (torch.float16 if settings else ENGINES[kind].get("dtype", torch.float32))
        assert result["unchanged"] == [index in (0, 4) for index in range(8)]
        assert result["counts"] == {6}
        # The fourth step that was taken, not the fourth call.
        assert result["grouped"] == [5, 4] and result["wrong"] == []


REFUSALS = {
    "NVMe": "offload to NVMe is not supported",
    "partial": "partial offload",
    "ZenFlow": "ZenFlow is not supported",
    "float16": "torch_autocast with float16 is not supported",
    "unknown": "none of its sub-groups",
    "other storage": "not in one flat buffer",
    "shifted": "do not make up the layer: they have 287 of 287 elements",
    "shorter": "do not make up the layer: they have 286 of 287 elements",
    "other weights": "has other values than the parameter",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_is_not_supported_is_refused_on_every_rank_before_anything_changes(ranks, name):
    said = next((text for start, text in REFUSALS.items() if name.startswith(start)), None)
    for results in ranks[1] + ranks[3]:
        errors, unchanged, states = results["refused"][name]
        if said is None:  # as it is, or with the advice of the message taken
            assert errors == [None, None] and not unchanged
        else:
            assert all(error.startswith("UnsupportedShardingError: ") and said in error for error in errors)
            assert unchanged and states == 0
            if name.startswith("other weights"):  # the message names the layer
                assert all(name.split()[3].rstrip(",") in error for error in errors)


def layers(result):
    return sorted((layer.name, layer.numel) for layer in result["report"].layers) if result["report"] else []


def assert_same(one, other, *where):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), (*where, name)
