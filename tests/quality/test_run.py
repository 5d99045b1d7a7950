"""A whole study on a tiny model: same weights and data for all, finished cells kept, controls that do what they say."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from gradscale import SGGAdamW
from gradscale.cli.bench import main
from gradscale.quality.cell import Cell, _Run, mean_scales, train
from gradscale.quality.controls import Control
from gradscale.quality.optimizers import make_optimizer, rate_at
from gradscale.quality.pool import Store
from gradscale.quality.run import run_study
from gradscale.quality.study import Schedule, read_study
from gradscale.training.errors import ConfigError
from gradscale.training.yaml_file import parse_flow

SMOKE = Path(__file__).parents[2] / "recipes/quality/smoke.yaml"


@pytest.fixture(scope="module")
def study():
    return read_study(SMOKE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The smoke study, run as a user would."""
    folder = tmp_path_factory.mktemp("quality") / "smoke"
    assert main(["quality", str(SMOKE), "--output_dir", str(folder), "--jobs", "2", "--threads", "1"]) == 0
    return folder


def test_the_report_has_a_line_for_every_optimizer_and_its_pictures(finished, study):
    record = json.loads((finished / "quality.json").read_text())
    assert {line["arm"] for line in record["optimizers"]} == set(study.arms)
    text = (finished / "quality.md").read_text()
    assert all(f"| `{name}` |" in text for name in study.arms)
    for name in ("curves.png", "learning_rates.svg", "scales_sgg.png"):
        assert (finished / name).stat().st_size > 1000


def test_what_has_finished_is_not_trained_again(finished, study, tmp_path, monkeypatch):
    again = shutil.copytree(finished, tmp_path / "again")
    lost = sorted((again / "cells").glob("sgg,*seed=12*"))
    assert len(lost) == 1
    before = json.loads(lost[0].read_text())["result"]
    lost[0].unlink()
    said = []
    _, failed = run_study(study, again, jobs=1, threads=1, device="cpu", said=said.append)
    assert failed == 0 and len(said) == 1 and "sgg lr=0.004 seed=12" in said[0]
    after = json.loads(lost[0].read_text())["result"]
    assert [point[::2] for point in after["curve"]] == [point[::2] for point in before["curve"]]


def test_a_cell_of_other_settings_is_not_taken_for_this_one(finished, study):
    values = parse_flow(SMOKE.read_text())
    from gradscale.quality.study import study_of

    cell = Cell("sgg", 4e-3, 12)
    assert Store(finished, study).get(cell) is not None
    assert Store(finished, study_of({**values, "steps": 21})).get(cell) is None
    assert Store(finished, study_of({**values, "block_size": 16})).get(cell) is None
    other_rates = {**values["optimizers"], "sgg": {**values["optimizers"]["sgg"], "learning_rates": [4e-3]}}
    assert Store(finished, study_of({**values, "optimizers": other_rates})).get(cell) is not None


def test_arms_begin_with_the_same_weights_on_the_same_batches(study, monkeypatch):
    seen = {}

    def spy(arm, lr, model, multipliers):
        hook = model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.setdefault(arm.name, []).append(kwargs["input_ids"].clone()), with_kwargs=True
        )
        assert hook is not None
        seen.setdefault(f"{arm.name} weights", [param.detach().clone() for param in model.parameters()])
        return make_optimizer(arm, lr, model, multipliers)

    monkeypatch.setattr("gradscale.quality.cell.make_optimizer", spy)
    for arm in ("adamw", "sgg"):
        train(study, Cell(arm, 1e-3, 5))
    for kind in ("", " weights"):
        assert all(torch.equal(*pair) for pair in zip(seen[f"adamw{kind}"], seen[f"sgg{kind}"], strict=True))


def test_rates_of_kinds_and_layers_multiply(study):
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(tiny)
    optimizer, factors = make_optimizer(study.arms["adamw-embedding"], 1e-3, model, {"lm_head.weight": 0.5})
    factor_of = {
        id(param): factor
        for group, factor in zip(optimizer.param_groups, factors, strict=True)
        for param in group["params"]
    }
    assert factor_of[id(model.model.embed_tokens.weight)] == 4 and factor_of[id(model.lm_head.weight)] == 0.5
    assert factor_of[id(model.model.norm.weight)] == 1
    decays = {id(param): group["weight_decay"] for group in optimizer.param_groups for param in group["params"]}
    assert decays[id(model.model.norm.weight)] == 0 and decays[id(model.lm_head.weight)] == 0.1


def test_the_schedule_rises_and_falls():
    schedule = Schedule(steps=100, warmup=0.1, min_rate=0.1)
    rates = [rate_at(step, schedule) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1 and rates[99] == pytest.approx(0.1)
    assert all(one >= other for one, other in zip(rates[10:], rates[11:], strict=False))


def test_controls_keep_what_a_layer_has_and_change_who_has_it():
    params = [torch.nn.Parameter(torch.randn(30, 40))]
    optimizer = SGGAdamW(params, recluster_interval=1, n_clusters=3)
    params[0].grad = torch.randn(30, 40)
    optimizer.step()
    state = optimizer.state[params[0]]
    labels, scales = state["labels"].clone(), state["scales"].clone()
    Control("random_labels", 0).after_grouping(optimizer)
    assert torch.equal(state["labels"].flatten().bincount(), labels.flatten().bincount())
    assert not torch.equal(state["labels"], labels) and torch.equal(state["scales"], scales)
    Control("permuted_scales", 1).after_grouping(optimizer)
    assert torch.equal(state["scales"].sort().values, scales.sort().values)
    assert not torch.equal(state["scales"], scales)


def test_mean_scales_weigh_elements_and_groupings():
    groupings = [(1, {"a": [[1.0, 3.0], [3, 1]]}), (2, {"a": [[2.0, 2.0], [1, 3]]})]
    assert mean_scales({"groupings": groupings}) == {"a": pytest.approx((1.5 + 2.0) / 2)}


def test_a_rate_that_is_too_high_diverges_and_is_no_failure(study):
    result = train(study, Cell("adamw", 1e4, 1))
    assert result["status"] == "diverged" and result["validation_loss"] is None


def test_a_folder_of_something_else_is_refused(study, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no study"):
        Store(tmp_path, study)
    with pytest.raises(ConfigError, match="is a file"):
        Store(tmp_path / "file", study)


def test_a_wrong_study_ends_with_one_line_and_status_2(tmp_path, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text(SMOKE.read_text().replace("optim: sgg_adamw", "optim: sgg_adam_w"))
    assert main(["quality", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    assert "did you mean 'sgg_adamw'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_hard_batch_is_no_divergence_and_ten_are(study, monkeypatch):
    """Of the first loss, not of the lowest so far: one batch may be far above what a trained model knows."""
    losses = iter([5.0] * 6 + [1.0] * 6 + [5.5] + [1.0] * 6 + [math.nan])
    monkeypatch.setattr(_Run, "step", lambda self, ids: next(losses))
    assert train(study, Cell("adamw", 1e-3, 11))["curve"][-1][0] == 15  # of 20 steps, with a measurement at each fifth
    losses = iter([5.0] * 6 + [1.0] * 6 + [5.5] + [1.0] * 7)
    assert train(study, Cell("adamw", 1e-3, 11))["status"] == "finished"
    losses = iter([5.0] + [6.1] * 10)
    found = train(study, Cell("adamw", 1e-3, 11))
    assert found["status"] == "diverged" and found["curve"][-1][0] == 10 and found["validation_loss"] is None
    losses = iter([0.1] * 20)  # ends far above that, by its validation loss
    assert train(study, Cell("adamw", 1e-3, 11))["status"] == "diverged"


def test_another_baseline_writes_the_tables_anew_and_trains_nothing(finished, tmp_path, capsys):
    again = shutil.copytree(finished, tmp_path / "again")
    command = ["quality", str(SMOKE), "--output_dir", str(again), "--baseline"]
    assert main([*command, "sgg"]) == 0
    out = capsys.readouterr().out
    assert "[1/" not in out and "Differences are to `sgg`" in out
    record = json.loads((again / "quality.json").read_text())
    found = {line["arm"]: line["difference"] for line in record["optimizers"]}
    before = {
        one["arm"]: one["difference"] for one in json.loads((finished / "quality.json").read_text())["optimizers"]
    }
    assert found["sgg"] is None and found["adamw"]["mean"] == pytest.approx(-before["sgg"]["mean"])
    assert main([*command, "sg"]) == 2
    assert "baseline='sg' is no optimizer of the study, did you mean 'sgg'" in capsys.readouterr().err
