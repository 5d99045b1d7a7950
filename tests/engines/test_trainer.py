"""The Trainer with DDP, FSDP1, FSDP2 and DeepSpeed ZeRO: training, checkpoints, resume, and ranks that are killed.

Every resume is in new processes. Guards against an engine that is not the one named, state that comes back rounded,
renamed or not at all, and a run length that is lost when the engine itself asks for a step to make state to load into.
"""

import re

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.multiprocessing import ProcessExitedException

from tests.engines import cases_trainer as cases
from tests.engines.cases_trainer import STEPS
from tests.engines.launch import run_ranks
from tests.engines.trainer_engines import KINDS, same

ENGINES = [name for name in KINDS if name != "single"]

CLOSE = 5e-5  # relative difference of losses


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    results = {
        "run": cases.run("single", folder / "run", 1),
        "lora": cases.run("single", folder / "lora", 1, **cases.LORA),
    }
    AcceleratorState._reset_state(reset_partial_state=True)
    return results


class Engine:
    """The launches of one engine, in the order in which they need each other."""

    def __init__(self, name, folder):
        self.name = name
        self._folder = folder
        self.brief = name in cases.BRIEF
        self.whole = self._launch(cases.uninterrupted, 2, folder)
        self.deaths = {}
        for how in () if self.brief else ("step", "checkpoint"):
            with pytest.raises(ProcessExitedException) as death:
                self._launch(getattr(cases, f"killed_in_a_{how}"), 2, folder / f"killed in a {how}")
            self.deaths[how] = str(death.value)
        self.resumed = self._launch(cases.resumed, 2, folder)
        worlds = () if self.brief else (3,) if name.startswith("zero") else (1, 3)
        self.elsewhere = {world: self._launch(cases.resumed_elsewhere, world, folder) for world in worlds}

    def runs(self, results):
        """Runs that were done, by name, of those that every engine can do but for its own limits."""
        return [name for name in ("run", "lora", "full") if isinstance(results.get(name), dict)]

    def _launch(self, function, world_size, folder):
        return run_ranks(function, world_size, self._folder / "ranks", self.name, str(folder))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tmp_path_factory):
    return Engine(request.param, tmp_path_factory.mktemp(request.param))


def test_the_engine_is_the_one_named(single, engine):
    assert single["run"]["engine"] == KINDS["single"]
    for ranks in (engine.whole, engine.resumed, *engine.elsewhere.values()):
        for results in ranks:
            for name, run in results.items():
                if isinstance(run, dict):
                    distributed, model, optimizer = KINDS[engine.name]
                    model = "FSDPPeftModel" if name == "lora" and engine.name == "fsdp2" else model
                    optimizer = run["optimizer"] if optimizer == "SGGAdamW" else optimizer
                    assert run["engine"] == (distributed, model, optimizer)


def test_every_case_was_run(engine):
    whole = {"run"} if engine.brief else {"run", "lora", "adamw"}
    whole |= {"full", "adamw full"} if engine.name == "fsdp2" else set()
    assert all(set(results) - {"replaced"} == whole for results in engine.whole)
    resumed = whole | (set() if engine.brief else {"longer", "killed in a step", "killed in a checkpoint"})
    resumed -= {"lora"} if engine.name.startswith("fsdp1") else set()
    assert all(set(results) == resumed for results in engine.resumed)


def test_training_equals_one_process(single, engine):
    for results in engine.whole:
        for name in engine.runs(results):
            mine, alone = results[name], single["lora" if name == "lora" else "run"]
            assert mine["losses"] == pytest.approx(alone["losses"], rel=CLOSE)
            assert mine["optimizer"] == "SGGAdamW" and sorted(mine["layers"]) == sorted(alone["layers"])
            assert mine["groupings"] == alone["groupings"] == [3, 6, 9, 12]  # a quarter of the epoch's 12 steps
            assert mine["total_steps"] == {12} and mine["warnings"] == []


def test_names_of_layers(engine):
    names = engine.whole[0]["run"]["layers"]
    # Hidden layers only, whatever the engine calls its parameters.
    assert len(names) == 14 and names[0] == "model.layers.0.self_attn.q_proj.weight" and "lm_head.weight" not in names
    if isinstance(lora := engine.whole[0].get("lora"), dict):
        assert len(lora["layers"]) == 4 and all("q_proj.lora_" in name for name in lora["layers"])


def test_offload_that_would_replace_the_optimizer_is_refused_when_arguments_are_made(engine):
    for results in engine.whole if engine.name == "zero2" else []:
        assert "OptionError: --optim sgg_adamw cannot run with this DeepSpeed configuration" in results["replaced"]


def test_target_modules_are_refused_where_the_engine_hides_what_to_choose_from(engine):
    if engine.name == "fsdp1 flat":
        for results in engine.whole:
            assert "ValueError: target_modules='q_proj' cannot choose among parameters" in results["lora"]


def test_resume_on_as_many_ranks_is_bit_exact(engine):
    for resumed, whole in zip(engine.resumed, engine.whole, strict=True):
        for name in engine.runs(resumed):
            _assert_same(resumed[name], whole[name])
            assert resumed[name]["groupings"] == [3, 6, 9, 12] and resumed[name]["warnings"] == []


def test_resume_in_a_longer_run_follows_its_length(engine):
    for results in engine.resumed if not engine.brief else []:
        assert results["longer"]["total_steps"] == {24}
        # 3 and 6 are from the checkpoint's history; from step 9 on, a quarter of 24.
        assert results["longer"]["groupings"] == [3, 6, 12, 18, 24]


def test_resume_on_another_number_of_ranks(engine):
    for ranks in engine.elsewhere.values():
        for results in ranks:
            for name, run in results.items():
                if engine.name.startswith("zero"):
                    # DeepSpeed refuses it, by one error or another. Its way is in test_zero_checkpoints.py.
                    assert "deepspeed/runtime" in run
                    continue
                whole = engine.whole[0][name]
                assert run["losses"] == pytest.approx(whole["losses"], rel=CLOSE)
                assert run["groupings"] == whole["groupings"] and run["warnings"] == []
                for key, weight in whole["weights"].items():
                    # Engines round differently, and an element at the very edge of its cluster may change sides.
                    off = ~torch.isclose(run["weights"][key], weight, rtol=1e-4, atol=1e-5)
                    assert off.double().mean() <= 0.01 and (run["weights"][key] - weight).abs().max() <= 1e-3, key


@pytest.mark.parametrize("how, last", [("step", "checkpoint-8"), ("checkpoint", "checkpoint-4")])
def test_a_killed_rank_costs_the_steps_since_the_last_complete_checkpoint(engine, how, last):
    if engine.brief:
        return
    assert "SIGKILL" in engine.deaths[how]
    for resumed, whole in zip(engine.resumed, engine.whole, strict=True):
        assert resumed[f"killed in a {how}"]["from"] == last
        _assert_same(resumed[f"killed in a {how}"], whole["run"])


def test_a_checkpoint_of_plain_adamw_goes_on_with_a_message(engine):
    for resumed, whole in zip(engine.resumed, engine.whole, strict=True):
        for name in [name for name in resumed if name.startswith("adamw")]:
            run, plain = resumed[name], whole[name]
            assert (run["optimizer"], plain["optimizer"]) == ("SGGAdamW", "AdamW")
            (message,) = run["warnings"]
            assert re.search(r"no groups for \d+ layers", message) and "until the next grouping" in message
            assert run["groupings"] == [9, 12]
            # Its moments and step counts go on, 4 steps after 8. A tensor with nothing here has none.
            steps = {int(state["step"]) for state in run["state"] if state["exp_avg"].numel()}
            assert steps == {STEPS}
            # Until the first grouping the losses are those of AdamW.
            assert {step: run["losses"][step] for step in range(1, 10)} == pytest.approx(
                {step: plain["losses"][step] for step in range(1, 10)}, rel=1e-6
            )


def _assert_same(resumed, whole):
    """Bit for bit: weights and state; the losses since."""
    assert resumed["losses"] == whole["losses"]
    assert same(resumed["weights"], whole["weights"])
    assert all(same(mine, other) for mine, other in zip(resumed["state"], whole["state"], strict=True))
