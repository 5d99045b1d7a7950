"""torch's FSDP1, with `use_orig_params` either way, against the same loops on one process.

Guards against groups of shards instead of layers, parts of layers that are taken for other ones, and ranks that have
nothing of a layer and so decide for themselves.
"""

import pytest
import torch

from tests.engines.cases_fsdp1 import CASES, ON_3, STEPS, alone, everything
from tests.engines.launch import run_ranks

HYBRID = ("hybrid by mesh", "hybrid by groups")
COUNTS = 65_281 * 4  # bytes of one layer's
# Narrow values are counted again; of layers with so few elements, nothing else is to be expected.
COUNTED_AGAIN = ("narrow", "tiny")


@pytest.fixture(scope="module")
def single():
    return alone()


@pytest.fixture(scope="module", params=[2, 3, 4])
def ranks(request, tmp_path_factory):
    return run_ranks(everything, request.param, tmp_path_factory.mktemp(f"ranks{request.param}"))


def of(single, name):
    return single.get(name, single["units"])


def test_every_case_was_run(ranks):
    names = {2: set(CASES), 3: set(ON_3), 4: set(HYBRID)}[len(ranks)]
    both = [True, False]
    expected = {(name, original) for name in names for original in CASES.get(name, {}).get("original", both)}
    assert all(results.keys() == expected for results in ranks)


def test_the_engine_is_fsdp1_and_shards(ranks):
    for (name, original), case in ranks[0].items():
        assert case["vectors"] == [not original] * len(case["vectors"]), name
        assert case["sharded"] == [name != "no shard"] * case["units"]
        strategy = {"no shard": "NO_SHARD", "shard grad op": "SHARD_GRAD_OP"}.get(name, "FULL_SHARD")
        assert case["strategies"] == {"HYBRID_SHARD" if name in HYBRID else strategy}
        assert case["units"] == (1 if "wrapping" not in CASES.get(name, {}) and name not in HYBRID else case["units"])
    assert ranks[0][("nested" if len(ranks) < 4 else HYBRID[0]), True]["units"] == (4 if len(ranks) < 4 else 3)


def test_each_element_is_on_one_rank_of_a_shard_group(ranks):
    for name, original in ranks[0]:
        if not original or name == "no shard":
            continue
        copies = 2 if name in HYBRID else 1
        here = [sum(results[name, original]["here"]) for results in ranks]
        trained = {"adapted": 108, "frozen rest": 480 + 288 + 24}.get(name)
        weights = ranks[0][name, original]["weights"].values()
        assert sum(here) == copies * (trained or sum(weight.numel() for weight in weights)), name


def test_some_ranks_have_nothing_of_layers_or_nothing_at_all(ranks):
    here = {name: [results[name, True]["here"] for results in ranks] for name, original in ranks[0] if original}
    if len(ranks) == 2:
        assert here["one unit"][1][0] == 0 and here["adapted"] == [[36, 72], [0, 0]]
        assert here["narrow"][1][:5] == [40, 0, 1, 0, 1]  # two layers of one element, one of two
    if len(ranks) == 3:
        assert here["tiny"] == [[2], [2], [0]] and here["adapted"] == [[0, 0], [36, 72], [0, 0]]
        assert here["narrow"][2] == [26, 0, 1, 0, 0, 0, 40]


def test_training_equals_one_process(single, ranks):
    for results in ranks:
        for (name, original), case in results.items():
            expected = of(single, name)
            half = name == "half precision"  # on one process, everything is in float32
            close = pytest.approx(expected["losses"], rel=1e-3 if half else 1e-5)
            assert case["losses"] == close, (name, original)
            assert not half or case["losses"] != pytest.approx(expected["losses"], rel=1e-5)
            assert case["report"].step == expected["report"].step == STEPS
            assert len(case["losses"]) == STEPS * (2 if name == "accumulated" else 1)
            for weight, value in case["weights"].items():
                assert half or torch.allclose(value, expected["weights"][weight], rtol=0, atol=1e-5), (name, weight)


def test_every_grouping_is_that_of_the_whole_layers_bit_for_bit(ranks):
    for (name, original), case in ranks[0].items():
        assert case["right"] == ([] if name == "without names" else [True] * 5), (name, original)
        for results in ranks:
            assert results[name, original]["rows"] == case["rows"] and len(case["rows"]) == len(case["right"])


def test_all_ranks_make_the_same_decisions_and_end_with_the_same_weights(ranks):
    for results in ranks:
        for key, case in results.items():
            first = ranks[0][key]
            assert case["report"] == first["report"], key
            assert case["weights"].keys() == first["weights"].keys()
            assert all(torch.equal(value, first["weights"][name]) for name, value in case["weights"].items()), key


def test_both_kinds_of_parameters_train_alike(ranks):
    for results in ranks:
        for name in [name for name, original in results if not original]:
            one, other = results[name, True], results[name, False]
            if len(ranks) == 3:
                # They cut the vectors elsewhere, and a sum of three gradients depends on the order, which depends on
                # the cut.
                assert one["losses"] == pytest.approx(other["losses"], rel=1e-6), name
                continue
            assert one["losses"] == other["losses"], name
            assert sorted(numbers(one)) == sorted(numbers(other)), name


def test_names_and_scaled_layers(single, ranks):
    for (name, original), case in ranks[0].items():
        names = [layer.name for layer in case["report"].layers]
        if name != "without names":
            assert set(names) == {layer.name for layer in of(single, name)["report"].layers}, (name, original)
    if len(ranks) == 2:
        assert [layer.name for layer in ranks[0]["target", True]["report"].layers] == ["1.weight"]
        assert [layer.name for layer in ranks[0]["target before", True]["report"].layers] == ["1.weight"]
        tied = {layer.name for layer in ranks[0]["tied", False]["report"].layers}
        assert tied == {"embedding.weight", "middle.0.weight", "middle.1.weight"}
        for original, given in ((True, "parameter 0"), (False, "parameter 0: 0.weight")):
            assert ranks[0]["without names", original]["report"].layers[0].name == given


def test_without_names_the_groups_are_the_same(ranks):
    if len(ranks) == 2:
        for original in (True, False):
            assert numbers(ranks[0]["without names", original]) == numbers(ranks[0]["units", original])


def test_a_grouping_is_one_all_reduce_of_counts_and_nothing_is_sent_between(ranks):
    for results in ranks:
        for (name, original), case in results.items():
            first, *later = case["sent"]
            layers = len(case["report"].layers)
            expected = [] if name == "no shard" else [layers * COUNTS]
            assert bool(first) == (name != "no shard") and sum(first) < 1000  # the self-check
            for step, sizes in enumerate(later, start=2):
                again = sizes[1:] if name in COUNTED_AGAIN else []
                assert all(size < expected[0] or name == "tiny" for size in again)
                assert sizes == (expected + again if step % 4 == 0 else []), (name, original, step)


def numbers(case):
    """What the last grouping decided, without names."""
    return [(layer.counts, layer.centroids, layer.mda, layer.scales) for layer in case["report"].layers]
