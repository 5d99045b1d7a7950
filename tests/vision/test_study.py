"""Guards against studies that lose finished runs, mix runs of different settings, or change by being interrupted."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from gradscale.cli.train import main
from gradscale.training.timing import StepTimer
from gradscale.vision import cell as cell_module
from gradscale.vision.resnet import build_resnet


def read(path):
    return json.loads(path.read_text())


def results(folder):
    return {path.parent.relative_to(folder / "cells").as_posix(): read(path) for path in folder.rglob("result.json")}


def of_the_run(result):
    """What must not differ between two runs of one cell, whenever and however they ran."""
    clocks = ("seconds", "milliseconds_per_step", "optimizer_share")
    return {name: value for name, value in result.items() if name not in clocks}


@pytest.fixture
def two_by_two(settings):
    """Two models, a method with resets and one without, two seeds: eight runs."""
    adam = {"table": "Adam", "name": "Baseline", "optim": "adamw_torch", "learning_rate": 1e-2, "weight_decay": 0}
    sgg = {"table": "Adam", "name": "SGG", "optim": "sgg_adamw", "learning_rate": 1e-2}
    sgg |= {"optim_args": {"recluster_interval": 2}, "reset_args": {"soft": {"n_clusters": 2}, "hard": {}}}
    return settings | {
        "models": {"resnet8": "soft", "resnet14": "hard"},
        "methods": [adam, sgg],
        "seeds": [0, 1],
        "target_accuracy": 15,
        "warmup_steps": 1,
    }


def test_a_study_on_the_digits_end_to_end(two_by_two, write, capsys, tmp_path):
    assert main([write(two_by_two | {"max_steps": 24, "eval_steps": 6, "seeds": [0]})]) == 0
    out, folder = capsys.readouterr().out, tmp_path / "out"
    assert "data: scikit-learn's digits (not CIFAR-10): 8 x 8 grey images" in out
    found = results(folder)
    assert set(found) == {
        f"{model}/{name}/seed-0"
        for model, name in (
            ("resnet8", "adam-baseline"),
            ("resnet8", "adam-sgg-soft"),
            ("resnet14", "adam-baseline"),
            ("resnet14", "adam-sgg-hard"),
        )
    }
    for result in found.values():
        assert result["status"] == "finished" and result["global_step"] == result["max_steps"] == 24
        assert [step for step, _ in result["curve"]] == [6, 12, 18, 24]
        assert result["accuracy"] == result["curve"][-1][1] > 30  # it learns: chance is 10 %
        assert result["best_accuracy"] == max(accuracy for _, accuracy in result["curve"])
        assert result["steps_to_target"] == next(step for step, accuracy in result["curve"] if accuracy >= 15)
        network = build_resnet(result["model"], classes=10, channels=1, seed=0)
        assert result["parameters"] == sum(param.numel() for param in network.parameters())
        assert result["seconds"] > 0 and result["milliseconds_per_step"] > 0
    # Resets do not act on a baseline; the table says what the files say.
    sgg, baseline = found["resnet8/adam-sgg-soft/seed-0"], found["resnet8/adam-baseline/seed-0"]
    assert sgg["settings"]["options"] == {"recluster_interval": 2, "n_clusters": 2}
    assert sgg["curve"] != baseline["curve"]
    heading = "Adam on scikit-learn's digits (not CIFAR-10) (1 seed)"
    assert heading in out and heading in (folder / "tables.md").read_text()
    assert re.search(rf"ResNet8 - SGG +Soft +{sgg['accuracy']:.2f} +{sgg['steps_to_target']}\n", out)
    assert (
        f"| ResNet8 - SGG | Soft | {sgg['accuracy']:.2f} | {sgg['steps_to_target']} |"
        in (folder / "tables.md").read_text()
    )
    summary = read(folder / "summary.json")
    assert "not CIFAR-10" in summary["data"]
    assert [cell["model"] for cell in summary["cells"]] == ["resnet8", "resnet8", "resnet14", "resnet14"]
    assert not list(folder.rglob("checkpoint-*"))


def test_a_killed_study_runs_the_missing_cells_only(two_by_two, write, capsys, tmp_path, monkeypatch):
    config, folder = write(two_by_two), tmp_path / "out"
    run_cell, ran = cell_module.run_cell, []

    class Killed(BaseException):
        """Nothing catches it, as nothing catches SIGKILL."""

    def record(model, arguments, images, **rest):
        if limit is not None and len(ran) == limit:
            raise Killed
        ran.append(os.path.relpath(arguments.output_dir, folder / "cells"))
        return run_cell(model, arguments, images, **rest)

    monkeypatch.setattr(cell_module, "run_cell", record)
    limit = 3
    with pytest.raises(Killed):
        main([config])
    before = results(folder)
    assert [result["status"] for result in before.values()].count("finished") == 3
    assert [result["status"] for result in before.values()].count("running") == 1  # says so, and is no result
    finished = {name: result for name, result in before.items() if result["status"] == "finished"}
    assert set(finished) == set(ran) and not (folder / "summary.json").exists()

    limit, ran[:] = None, []
    capsys.readouterr()
    assert main([config]) == 2  # never by accident over what is there
    assert "already holds a study: continue it with --resume_from_checkpoint last" in capsys.readouterr().err
    assert main([config, "--resume_from_checkpoint", "last"]) == 0
    assert "8 runs, 3 of them finished already" in capsys.readouterr().out
    after = results(folder)
    assert len(ran) == 5 and not set(ran) & set(finished) and len(after) == 8
    assert {name: after[name] for name in finished} == finished
    assert len(read(folder / "summary.json")["cells"]) == 8

    # Another seed and another target need no old run again; the target is read off the curves.
    ran.clear()
    options = ["--resume_from_checkpoint", "last", "--target_accuracy", "99", "--seeds", "0", "1", "2"]
    assert main([config, *options]) == 0
    assert len(ran) == 4 and all(name.endswith("seed-2") for name in ran)
    assert "Iterations to 99 %" in capsys.readouterr().out
    assert {cell["target_accuracy"] for cell in read(folder / "summary.json")["cells"]} == {99}

    # Other settings are other runs, only where they matter.
    ran.clear()
    changed = two_by_two | {"methods": [two_by_two["methods"][0] | {"learning_rate": 2e-2}, two_by_two["methods"][1]]}
    assert main([write(changed), "--resume_from_checkpoint", "last"]) == 0
    assert len(ran) == 4 and all("adam-baseline" in name for name in ran)

    # A result that is no JSON is no result.
    ran.clear()
    broken = folder / "cells/resnet8/adam-baseline/seed-0/result.json"
    broken.write_text(broken.read_text()[:100])
    assert main([write(changed), "--resume_from_checkpoint", "last"]) == 0
    assert ran == ["resnet8/adam-baseline/seed-0"]

    # Deleting deletes what studies wrote, and nothing else.
    ran.clear()
    (folder / "notes.txt").write_text("mine")
    assert main([config, "--overwrite_output_dir", "--seeds", "7", "--models", "{resnet8: soft}"]) == 0
    assert set(results(folder)) == set(ran) and len(ran) == 2
    assert (folder / "notes.txt").read_text() == "mine" and not (folder / "cells/resnet14").exists()


def test_nothing_to_resume_and_foreign_folders_are_refused(settings, write, capsys, tmp_path):
    config, folder = write(settings), tmp_path / "out"
    assert main([config, "--resume_from_checkpoint", "last"]) == 2
    assert "there is no study in output_dir=" in capsys.readouterr().err
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    assert main([config, "--overwrite_output_dir"]) == 2
    assert "is not empty and holds no study" in capsys.readouterr().err
    assert (folder / "thesis.tex").read_text() == "precious"
    assert main([config, "--output_dir", str(folder / "thesis.tex")]) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err
    assert main([config, "--output_dir", str(tmp_path / "other"), "--data", "no/such.parquet"]) == 2
    error = capsys.readouterr().err
    assert "no file or folder" in error and len(error.splitlines()) == 1 and not (tmp_path / "other").exists()


def augmented(settings, write_parquet):
    """A study on color images with augmentation, whose epochs (of 2.25 batches) end within batches."""
    images = np.random.default_rng(0).integers(0, 256, (45, 12, 12, 3))
    path = write_parquet("all.parquet", images, [index % 3 for index in range(45)])
    return settings | {"data": str(path), "per_device_train_batch_size": 16, "max_steps": 8}


def stop_at(monkeypatch, *steps):
    """Send SIGTERM within these steps of the next runs, one in each."""
    pending, on_optimizer_step = list(steps), StepTimer.on_optimizer_step

    def stop(self, args, state, control, **kwargs):
        on_optimizer_step(self, args, state, control, **kwargs)
        if pending and state.global_step + 1 == pending[0]:
            pending.pop(0)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(StepTimer, "on_optimizer_step", stop)


def test_an_interrupted_run_continues_to_the_very_same_result(
    settings, write, write_parquet, capsys, tmp_path, monkeypatch
):
    config = write(augmented(settings, write_parquet))
    assert main([config, "--output_dir", str(tmp_path / "whole")]) == 0
    (whole,) = results(tmp_path / "whole").values()
    stop_at(monkeypatch, 4, 7, 8)
    assert main([config]) == 143  # in the middle of an epoch, at a step with an evaluation
    error = capsys.readouterr().err
    assert "stopped in ResNet8 SGD Baseline seed 0 after step 4; 1 runs are missing" in error
    assert f"gradscale train {config} --resume_from_checkpoint last" in error
    (first,) = results(tmp_path / "out").values()
    assert first["status"] == "interrupted" and [step for step, _ in first["curve"]] == [2, 4]
    assert main([config, "--resume_from_checkpoint", "last"]) == 143  # at a step without
    (second,) = results(tmp_path / "out").values()
    assert second["global_step"] == 7 and second["seconds"] > first["seconds"]
    # A signal in the last step finds a complete run, which is kept.
    capsys.readouterr()
    assert main([config, "--resume_from_checkpoint", "last"]) == 143
    assert "stopped; 0 runs are missing" in capsys.readouterr().err
    (last,) = results(tmp_path / "out").values()
    assert of_the_run(last) == of_the_run(whole) and last["status"] == "finished"
    assert main([config, "--resume_from_checkpoint", "last"]) == 0
    assert results(tmp_path / "out") == {"resnet8/sgd-baseline/seed-0": last}
    assert not list((tmp_path / "out").rglob("checkpoint-*"))


def test_a_checkpoint_of_other_settings_is_not_continued(settings, write, write_parquet, tmp_path, monkeypatch):
    values = augmented(settings, write_parquet)
    stop_at(monkeypatch, 4, 2)
    assert main([write(values)]) == 143
    other = write(values | {"max_steps": 6})
    assert main([other, "--resume_from_checkpoint", "last"]) == 143  # at step 2, and the older checkpoint is of step 4
    assert main([other, "--resume_from_checkpoint", "last"]) == 0
    assert main([other, "--output_dir", str(tmp_path / "new")]) == 0
    (resumed,), (new,) = results(tmp_path / "out").values(), results(tmp_path / "new").values()
    assert of_the_run(resumed) == of_the_run(new)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_last_step_is_evaluated_also_between_two_evaluations(settings, write, tmp_path, monkeypatch, stopped):
    if stopped:  # the run is complete all the same
        stop_at(monkeypatch, 3)
    assert main([write(settings | {"max_steps": 3})]) == (143 if stopped else 0)
    (result,) = results(tmp_path / "out").values()
    assert result["status"] == "finished"
    assert [step for step, _ in result["curve"]] == [2, 3] and result["accuracy"] == result["curve"][-1][1]


def test_a_study_that_diverges_says_so(settings, write, capsys, tmp_path):
    settings["methods"][0]["learning_rate"] = 1e30
    assert main([write(settings | {"max_grad_norm": 0})]) == 0
    out = capsys.readouterr().out
    (result,) = results(tmp_path / "out").values()
    assert result["status"] == "diverged" and result["steps_to_target"] is None
    assert "(diverged), 95 % not reached" in out and "(1 of 1 diverged)" in out and "not reached" in out


def test_ctrl_c_stops_orderly(settings, write, tmp_path):
    config = write(settings | {"max_steps": 100_000, "seeds": [0, 1]})
    script = "import sys; from gradscale.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", script, "train", config, "--no_disable_tqdm"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as process:
        for line in process.stdout:
            if "eval_accuracy" in line:
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "2 runs are missing. Continue with:" in errors
    (result,) = results(tmp_path / "out").values()
    assert result["status"] == "interrupted" and result["global_step"] >= 2
    assert (tmp_path / f"out/cells/resnet8/sgd-baseline/seed-0/checkpoint-{result['global_step']}").is_dir()
