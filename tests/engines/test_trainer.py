"""The Trainer with DDP and FSDP2: training, checkpoints, resume, and ranks that are killed.

Every resume is in new processes. Guards against an engine that is not the one named, state that comes back rounded,
renamed or not at all, and a run length that is lost when the engine itself asks for a step to make state to load into.
"""

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.multiprocessing import ProcessExitedException

from tests.engines import cases_trainer as cases
from tests.engines.launch import run_ranks

ENGINES = {"ddp": ("MULTI_CPU", True, False), "fsdp2": ("FSDP", False, True)}


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
        self.whole = self._launch(cases.uninterrupted, 2, folder)
        self.deaths = {}
        for how in ("step", "checkpoint"):
            with pytest.raises(ProcessExitedException) as death:
                self._launch(getattr(cases, f"killed_in_a_{how}"), 2, folder / f"killed in a {how}")
            self.deaths[how] = str(death.value)
        self.resumed = self._launch(cases.resumed, 2, folder)
        self.elsewhere = {world: self._launch(cases.resumed_elsewhere, world, folder) for world in (1, 3)}

    def _launch(self, function, world_size, folder):
        return run_ranks(function, world_size, self._folder / "ranks", self.name, str(folder))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tmp_path_factory):
    return Engine(request.param, tmp_path_factory.mktemp(request.param))


def test_the_engine_is_the_one_named(single, engine):
    assert single["run"]["engine"] == ("NO", False, False)
    for ranks in (engine.whole, engine.resumed, *engine.elsewhere.values()):
        for results in ranks:
            assert {run["engine"] for run in results.values() if isinstance(run, dict)} == {ENGINES[engine.name]}


def test_training_equals_one_process(single, engine):
    for results in engine.whole:
        for name in ("run", "lora", *(["full"] if engine.name == "fsdp2" else [])):
            mine, alone = results[name], single["lora" if name == "lora" else "run"]
            assert mine["losses"] == pytest.approx(alone["losses"], rel=1e-5)
            assert mine["optimizer"] == "SGGAdamW" and mine["layers"] == alone["layers"]
            assert mine["groupings"] == alone["groupings"] == [3, 6, 9, 12]  # a quarter of the epoch's 12 steps
            assert mine["total_steps"] == {12} and mine["warnings"] == []


def test_names_of_layers(single, engine):
    names = engine.whole[0]["run"]["layers"]
    assert len(names) == 16 and names[0] == "model.embed_tokens.weight" and names[-1] == "lm_head.weight"
    lora = engine.whole[0]["lora"]["layers"]
    assert len(lora) == 4 and all("q_proj.lora_" in name for name in lora)


def test_resume_on_as_many_ranks_is_bit_exact(engine):
    for results in engine.resumed:
        for name in ("run", "lora", *(["full"] if engine.name == "fsdp2" else [])):
            _assert_same(results[name], engine.whole[0][name])
            assert results[name]["groupings"] == [3, 6, 9, 12] and results[name]["warnings"] == []


def test_resume_in_a_longer_run_follows_its_length(engine):
    for results in engine.resumed:
        assert results["longer"]["total_steps"] == {24}
        # 3 and 6 are from the checkpoint's history; from step 9 on, a quarter of 24.
        assert results["longer"]["groupings"] == [3, 6, 12, 18, 24]


def test_resume_on_another_number_of_ranks(engine):
    for ranks in engine.elsewhere.values():
        for results in ranks:
            for name, run in results.items():
                whole = engine.whole[0][name]
                assert run["losses"] == pytest.approx(whole["losses"], rel=1e-5)
                assert run["groupings"] == whole["groupings"] and run["warnings"] == []
                for key, weight in whole["weights"].items():
                    torch.testing.assert_close(run["weights"][key], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how, last", [("step", "checkpoint-8"), ("checkpoint", "checkpoint-4")])
def test_a_killed_rank_costs_the_steps_since_the_last_complete_checkpoint(engine, how, last):
    assert "SIGKILL" in engine.deaths[how]
    for results in engine.resumed:
        assert results[f"killed in a {how}"]["from"] == last
        _assert_same(results[f"killed in a {how}"], engine.whole[0]["run"])


def test_a_checkpoint_of_plain_adamw_goes_on_with_a_message(engine):
    name = "adamw full" if engine.name == "fsdp2" else "adamw"
    for results in engine.resumed:
        run, plain = results[name], engine.whole[0][name]
        assert (run["optimizer"], plain["optimizer"]) == ("SGGAdamW", "AdamW")
        (message,) = run["warnings"]
        assert "no groups for 16 layers" in message and "until the next grouping" in message
        assert run["groupings"] == [9, 12]
        # Its moments were loaded: until the first grouping the losses are those of AdamW.
        assert {step: run["losses"][step] for step in range(1, 10)} == pytest.approx(
            {step: plain["losses"][step] for step in range(1, 10)}, rel=1e-6
        )
    if engine.name == "fsdp2":  # torch.distributed.checkpoint finds the keys missing before it loads anything
        for results in engine.resumed:
            assert (
                "Missing key in checkpoint state_dict: optimizer.state.model.embed_tokens.weight"
                in results["adamw sharded"]
            )


def _assert_same(resumed, whole):
    """Bit for bit: weights and state; the losses since."""
    assert resumed["losses"] == whole["losses"]
    assert resumed["weights"].keys() == whole["weights"].keys()
    assert all(torch.equal(resumed["weights"][name], whole["weights"][name]) for name in whole["weights"])
    for mine, other in zip(resumed["state"], whole["state"], strict=True):
        assert mine.keys() == other.keys()
        assert all(mine[key].dtype == other[key].dtype and torch.equal(mine[key], other[key]) for key in other)
