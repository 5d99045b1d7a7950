"""The main job end to end on a tiny model: results, trackers, resume, Ctrl-C, several processes."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradscale.cli.train import main


def losses(run):
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def assert_same_weights(one, two):
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_optimizers_on_the_same_data(settings, write, capsys, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    more = {
        "optim": "sgg_adamw",
        "optim_args": {"preset": "paper", "grouping": "kmeans", "recluster_interval": 2, "n_clusters": 2},
        "compare_optim": ["adamw_torch"],
        "eval_strategy": "steps",
        "eval_steps": 4,
        "logging_steps": 1,
        "report_to": "tensorboard",
        "log_gradient_norms": True,
        "plot": True,
    }
    assert main([write(settings | more)]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "out"
    sgg, adamw = json.loads((folder / "summary.json").read_text())["runs"]

    # The table says what the files say.
    for run in (sgg, adamw):
        assert run["status"] == "finished" and run["global_step"] == 8 and run["seed"] == 42
        assert run["perplexity"] == pytest.approx(math.exp(run["validation_loss"]))
        assert 1 < run["perplexity"] < 400
        row = next(line for line in out.splitlines() if line.startswith(run["optim"] + " "))
        assert f"{run['validation_loss']:.4f}" in row and f"{run['perplexity']:.3f}" in row
        assert 0 < run["optimizer_share"] < 1 and run["tokens_per_second"] > 0 and run["wall_seconds"] > 0
        assert run["tokens"] == 8 * 4 * 32
        assert json.loads((folder / run["optim"] / "run.json").read_text())["perplexity"] == run["perplexity"]
    assert adamw["optimizer_state_bytes_per_parameter"] == pytest.approx(8, abs=0.1)
    assert 8 < sgg["optimizer_state_bytes_per_parameter"] < 12

    # The same data, weights and schedule: until the first grouping, both do the same.
    first, second = losses(folder / "sgg_adamw"), losses(folder / "adamw_torch")
    assert first[1] == second[1] and first[2] == pytest.approx(second[2], rel=1e-5)
    assert first[8] != second[8]

    # One line per grouping, every matrix in it, and the last one in the summary.
    groupings = read_lines(folder / "sgg_adamw" / "scales.jsonl")
    assert [line["step"] for line in groupings] == [2, 4, 6, 8]
    layer = groupings[-1]["layers"]["model.embed_tokens.weight"]
    assert sum(layer["counts"]) == layer["numel"] and len(layer["scales"]) == 2
    assert sgg["scales"] == groupings[-1] and adamw["scales"] is None
    assert "model.embed_tokens.weight" in out and not (folder / "adamw_torch" / "scales.jsonl").exists()

    # TensorBoard has the loss and the scales.
    events = next((folder / "sgg_adamw" / "runs").rglob("events*"))
    scalars = EventAccumulator(str(events.parent)).Reload().Tags()["scalars"]
    assert {"train/loss", "eval/loss"} <= set(scalars)
    tagged = [tag for tag in scalars if "sgg/scale_mean" in tag]
    assert len(tagged) == 1
    assert len(EventAccumulator(str(events.parent)).Reload().Scalars(tagged[0])) == 4

    for name in ("loss.png", "loss.svg", "scales.png", "scales.svg", "norms.png", "norms.svg"):
        assert (folder / name).stat().st_size > 10_000
    norms = read_lines(folder / "adamw_torch" / "gradient_norms.jsonl")
    assert [line["step"] for line in norms] == list(range(1, 9)) and "lm_head.weight" in norms[0]["norms"]

    # What is left is a model that works, with its tokenizer.
    model = AutoModelForCausalLM.from_pretrained(folder / "sgg_adamw")
    tokenizer = AutoTokenizer.from_pretrained(folder / "sgg_adamw")
    assert model.generate(**tokenizer("the optimizer", return_tensors="pt"), max_new_tokens=3).shape[1] > 3

    # The folder is in use now; resuming it finds nothing left to do.
    assert main([write(settings | more)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    # Logging changes nothing in what is trained.
    assert main([write(settings | more), "--resume_from_checkpoint", "last", "--no_log_gradient_norms"]) == 0
    out = capsys.readouterr().out
    assert "training into" not in out and "training from" not in out and f"{sgg['perplexity']:.3f}" in out
    assert main([write(settings | more), "--overwrite_output_dir", "--max_steps", "2", "--compare_optim", "sgd"]) == 0
    assert (folder / "sgd").is_dir() and not (folder / "adamw_torch").exists()


def test_validation_loss_is_the_models_own(settings, write, tmp_path, workplace):
    """The reported loss is the mean over all predicted tokens, computed here by hand from the saved model."""
    assert main([write(settings)]) == 0
    folder = tmp_path / "out"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [*tokenizer((workplace / "validation.txt").read_text())["input_ids"], tokenizer.eos_token_id]
    blocks = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    with torch.no_grad():
        scores = model(blocks).logits[:, :-1].double()
    expected = torch.nn.functional.cross_entropy(scores.flatten(0, 1), blocks[:, 1:].flatten())
    assert json.loads((folder / "run.json").read_text())["validation_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_resumed_run_equals_the_uninterrupted_one(settings, write, tmp_path, capsys):
    more = {
        "optim": "sgg_adamw",
        "optim_args": {"recluster_interval": 3},
        "save_steps": 4,
        "gradient_accumulation_steps": 2,
    }
    config = write(settings | more)
    whole, rest = tmp_path / "out", tmp_path / "rest"
    assert main([config]) == 0
    assert main([config, "--output_dir", str(rest), "--resume_from_checkpoint", str(whole / "checkpoint-4")]) == 0
    assert_same_weights(whole, rest)
    assert losses(whole) == losses(rest)
    # In its own folder, too: groupings after the checkpoint are not written twice.
    before = (whole / "scales.jsonl").read_text()
    assert main([config, "--resume_from_checkpoint", str(whole / "checkpoint-4")]) == 0
    assert (whole / "scales.jsonl").read_text() == before
    assert [line["step"] for line in read_lines(whole / "scales.jsonl")] == [3, 6]


def test_ctrl_c_leaves_a_checkpoint_that_continues(settings, write, tmp_path, capsys):
    more = {"optim": "sgg_adamw", "max_steps": 250, "logging_steps": 1, "save_strategy": "no"}
    config = write(settings | more)
    interrupted, whole = tmp_path / "out", tmp_path / "whole"
    assert main([config, "--output_dir", str(whole)]) == 0

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    script = "import sys; from gradscale.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "train", config]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as process:
        for line in process.stdout:
            if "'loss'" in line:
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    step = int(re.search(r"stopped after step (\d+)", errors)[1])
    assert 1 <= step < 250
    assert (interrupted / f"checkpoint-{step}" / "trainer_state.json").is_file()
    assert f"gradscale train {config} --resume_from_checkpoint last" in errors
    record = json.loads((interrupted / "run.json").read_text())
    assert record["status"] == "interrupted" and record["global_step"] == step

    capsys.readouterr()
    assert main([config, "--resume_from_checkpoint", "last"]) == 0
    assert f"checkpoint-{step}" in capsys.readouterr().out
    assert_same_weights(whole, interrupted)
    assert json.loads((interrupted / "run.json").read_text())["wall_seconds"] > record["wall_seconds"]
    assert losses(whole) == losses(interrupted)


def test_sigterm_between_compared_runs(settings, write, tmp_path, capsys, monkeypatch):
    """The first run is complete, the second is stopped: resuming trains the second only."""
    from gradscale.training.timing import StepTimer

    config = write(settings | {"optim": "adamw_torch", "compare_optim": ["sgd"]})
    on_train_begin = StepTimer.on_train_begin

    def stop_sgd(self, args, state, control, **kwargs):
        on_train_begin(self, args, state, control, **kwargs)
        if args.optim == "sgd":
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StepTimer, "on_train_begin", stop_sgd)
        assert main([config]) == 143
    assert "stopped after step 1;" in capsys.readouterr().err
    assert main([config, "--resume_from_checkpoint", "last"]) == 0
    out = capsys.readouterr().out
    assert "adamw_torch: training" not in out and "sgd: training from" in out
    assert [run["global_step"] for run in json.loads((tmp_path / "out" / "summary.json").read_text())["runs"]] == [8, 8]


def test_fine_tuning_a_local_model(settings, write, tmp_path, capsys):
    assert main([write(settings)]) == 0
    model = str(tmp_path / "out")
    tuning = {key: value for key, value in settings.items() if key not in ("model_config", "vocab_size")}
    config = write(
        tuning | {"model_name_or_path": model, "output_dir": str(tmp_path / "tuned"), "max_steps": 2}, "b.yaml"
    )
    assert main([config, "--learning_rate", "1e-9"]) == 0
    before, after = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("out", "tuned"))
    # With no learning to speak of, it is the model that it started from.
    assert after["validation_loss"] == pytest.approx(before["validation_loss"], rel=1e-4)
    assert main([config, "--output_dir", str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert {value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_run_that_diverges_says_so(settings, write, tmp_path, capsys):
    assert main([write(settings | {"learning_rate": 1e18, "max_grad_norm": 0, "optim": "sgd"})]) == 0
    out = capsys.readouterr().out
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["status"] == "diverged"
    assert re.search(r"^sgd\s+diverged", out, re.MULTILINE)


def test_without_matplotlib(settings, write, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "gradscale.plots.draw", raising=False)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([write(settings | {"plot": True, "max_steps": 2})]) == 0
    assert capsys.readouterr().err.count("no plot: matplotlib is not installed (pip install 'gradscale[plot]')") == 1


def test_errors_before_anything_is_written(settings, write, tmp_path, capsys, workplace):
    no_model = {key: value for key, value in settings.items() if key != "model_config"}
    (tmp_path / "plain").mkdir()
    cases = [
        (settings | {"train_files": str(tmp_path / "no*.txt")}, [], "train_files: no file matches"),
        (settings | {"block_size": 10**6}, [], "the training data has"),
        (settings | {"tokenizer_name_or_path": "./missing"}, [], "tokenizer_name_or_path='./missing' is no folder"),
        (no_model | {"model_name_or_path": str(tmp_path / "missing")}, [], "model_name_or_path="),
        (no_model | {"model_name_or_path": str(tmp_path / "plain")}, [], "has no config.json"),
        (no_model | {"model_name_or_path": "nobody/nothing"}, [], "model_name_or_path='nobody/nothing': no tokenizer"),
        (no_model | {"model_config": "missing.json"}, [], "there is no readable file 'missing.json'"),
        (no_model | {"model_config": {"hidden_size": 3}}, [], "model_config has no model_type"),
        (no_model | {"model_config": {"model_type": "lama"}}, [], "unknown model_type 'lama', did you mean 'llama'?"),
        (settings, ["--model_config", "{model_type: llama, hiden_size: 3}"], "did you mean 'hidden_size'?"),
        (
            settings,
            ["--model_config", "{model_type: llama, max_position_embeddings: 8}"],
            "block_size=32 is more than the model's 8",
        ),
        (settings, ["--model_config", "{model_type: llama, vocab_size: 100}"], "vocabulary only 100"),
        (settings, ["--resume_from_checkpoint", str(tmp_path / "plain")], "is not a checkpoint of a Trainer"),
        (settings, ["--resume_from_checkpoint", "last"], "there is no complete checkpoint in output_dir"),
    ]
    for values, options, message in cases:
        assert main([write(values), *options]) == 2, message
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
        assert len(error) < 2000
    assert not (tmp_path / "out").exists()
    # The optimizer is made with the model; nothing but an empty folder is left.
    assert main([write(settings | {"optim": "sgg_adamw", "optim_target_modules": ["q_prj"]})]) == 2
    assert "q_proj" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_two_processes(settings, write, tmp_path):
    config = write(
        settings | {"optim": "sgg_adamw", "optim_args": {"recluster_interval": 2}, "max_steps": 4, "plot": True}
    )
    script = tmp_path / "train.py"
    script.write_text("import sys; from gradscale.cli.main import main; sys.exit(main(sys.argv[1:]))")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "new_cache")}
    done = subprocess.run(
        [*command, "train", config], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("perplexity") == 1 and done.stdout.count("training into") == 1
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["tokens"] == 4 * 4 * 32 * 2 and run["status"] == "finished"
    assert [line["step"] for line in read_lines(tmp_path / "out" / "scales.jsonl")] == [2, 4]
    assert len(list((tmp_path / "new_cache" / "gradscale" / "tokenizers").iterdir())) == 1
    assert Path(tmp_path / "out" / "loss.png").stat().st_size > 10_000
