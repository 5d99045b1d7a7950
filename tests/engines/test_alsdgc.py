"""ALSDGC on two ranks with DDP, FSDP1, FSDP2 and ZeRO, through the Trainer.

Guards against ranks that decide differently (a NaN loss is on one of them alone), norms of parts taken for the whole,
and statistics that a resume forgets.
"""

import math
from typing import NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.engines import cases_alsdgc as cases
from tests.engines.launch import run_ranks
from tests.engines.trainer_engines import KINDS, same

LATE = ("alsdgc/threshold", "alsdgc/clipped_norm")
ENGINES = ["ddp", "fsdp1", "fsdp1 flat", "fsdp2", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    results = cases.all_cases(0, 1, "single", str(tmp_path_factory.mktemp("single")))
    AcceleratorState._reset_state(reset_partial_state=True)
    return results


@pytest.fixture(scope="module", params=ENGINES)
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    results = run_ranks(cases.all_cases, 2, folder / "ranks", request.param, str(folder))
    loops = [rank.pop("scaler", None) for rank in results]
    narrow = [{name: rank.pop(name) for name in list(rank) if name[1:4] in ("p16", "f16")} for rank in results]
    return Launch(request.param, results, loops, narrow)


class Launch(NamedTuple):
    engine: str
    runs: list  # of each rank, by name, in full precision
    loops: list  # of each rank, without a Trainer
    narrow: list  # of each rank, by name, in fp16 and bf16


def test_the_engine_is_the_one_named(ranks):
    engine, results = ranks[:2]
    for rank in results:
        assert {run["engine"] for run in rank.values()} == {KINDS[engine]}


def test_ranks_decide_alike_to_the_last_bit(ranks):
    first, second = ranks.runs
    assert first.keys() == second.keys() and len(first) >= 2
    for name in first:
        assert first[name]["state"] == second[name]["state"]
        assert same(first[name]["weights"], second[name]["weights"])


def test_norms_and_thresholds_are_those_of_one_process(single, ranks):
    engine, (first, _) = ranks[:2]
    for name, run in first.items():
        mine, alone = run["logs"], single[name]["logs"]
        finite = [not math.isnan(loss) for loss in alone["loss"]]
        assert finite.count(False) == 1 and len(finite) == 9
        for key in ("alsdgc/norm", "alsdgc/threshold", "alsdgc/clipped_norm", "loss"):
            for step, (one, other) in enumerate(zip(mine[key], alone[key], strict=True)):
                # A threshold that is set before the step cannot know how far beyond it the norm will be.
                late = engine.startswith("zero") and step == cases.SPIKE_STEP and key in LATE
                if finite[step] and not late:
                    assert one == pytest.approx(other, rel=1e-3), (name, key, step)
        assert mine["alsdgc/skipped"] == alone["alsdgc/skipped"] == [0] * 2 + [1] * 7


def test_a_nan_on_one_rank_is_one_skipped_step_on_all_and_the_schedule_waits(ranks):
    results = ranks.runs
    for rank in results:
        for run in rank.values():
            assert run["state"]["counters"]["skipped"] == {"non-finite loss": 1}
            assert run["schedule"] == 8
            assert all(weight.isfinite().all() for weight in run["weights"].values())
            assert math.isnan(run["logs"]["loss"][cases.NAN_STEP])


def test_a_spike_is_clipped_to_the_threshold(ranks):
    first, _ = ranks.runs
    logs = first["run"]["logs"]
    assert logs["alsdgc/norm"][cases.SPIKE_STEP] > 20 * logs["alsdgc/threshold"][cases.SPIKE_STEP]
    assert logs["alsdgc/clipped_norm"][cases.SPIKE_STEP] == pytest.approx(
        logs["alsdgc/threshold"][cases.SPIKE_STEP], rel=1e-4
    )


def test_training_equals_one_process(single, ranks):
    first, _ = ranks.runs
    for name, weight in first["run"]["weights"].items():
        difference = (weight - single["run"]["weights"][name]).abs().max().item()
        assert difference < 2e-3, name  # 9 steps of 1e-3 move it by up to 9e-3


def test_a_resume_continues_bit_for_bit(ranks):
    results = ranks.runs
    for rank in results:
        assert rank["resumed"]["state"] == rank["run"]["state"]
        assert same(rank["resumed"]["weights"], rank["run"]["weights"])
        assert str(rank["resumed"]["logs"]) == str(rank["run"]["logs"])


def test_deepspeed_keeps_the_loss_scale_for_bad_data_and_lowers_it_for_an_overflow(ranks):
    if ranks.engine != "zero2":
        assert ranks.narrow == [{}, {}]
        return
    for rank in ranks.narrow:
        half = rank["fp16"]
        assert half["engine"] == KINDS["zero2"]
        # The loss of the spike, times 2^14, is beyond float16.
        assert half["scales"] == [2.0**14] * 7 + [2.0**13] * 2
        assert half["state"]["counters"]["skipped"] == {"non-finite loss": 1, "overflow": 1}
        # What DeepSpeed used in the last step; its own rule would have halved the scale for the NaN, too.
        for run in (half, rank["bf16"]):
            assert run["DeepSpeed"][0] == run["logs"]["alsdgc/threshold"][-1] != 1  # which is the one to begin with
        assert half["DeepSpeed"][1] == 2.0**13
        assert half["schedule"] == 7 and rank["bf16"]["schedule"] == 8
        assert rank["bf16"]["scales"] == [] and rank["bf16"]["state"]["counters"]["skipped"] == {"non-finite loss": 1}
        for name in ("fp16", "bf16"):
            assert all(weight.isfinite().all() for weight in rank[name]["weights"].values())
            assert rank[f"{name} resumed"]["state"] == rank[name]["state"] == ranks.narrow[0][name]["state"]
            assert same(rank[f"{name} resumed"]["weights"], rank[name]["weights"])


def test_scalers_without_a_trainer_skip_and_scale_alike_on_all_ranks(ranks):
    if ranks.engine not in ("ddp", "fsdp2"):
        assert ranks.loops == [None, None]
        return
    first, second = ranks.loops
    assert first["found"] == second["found"]
    reasons = [reason for reason, _, _ in first["found"]]
    assert reasons[1:3] == ["non-finite loss"] * 2 and all("overflow" in reason for reason in reasons[3:5])
    assert reasons[0] == "warmup"
    scales = [scale for _, scale, _ in first["found"]]
    assert scales[:3] == [1024.0] * 3 and scales[-1] < 1024.0
    assert all(
        torch.equal(*pair) and pair[0].isfinite().all()
        for pair in zip(first["weights"], second["weights"], strict=True)
    )
