"""`gradscale sweep` with real runs: cells are kept, wrong settings come first, Ctrl-C can be gone on from.

Guards against results of other settings that are taken for this sweep's.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gradscale.cli.sweep import main
from gradscale.sweep.cell import ASKED, LOG


@pytest.fixture
def recipe(settings, write, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return str(write({**settings, "max_steps": 2}))


def losses(folder):
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    return {cell["learning_rate"]: cell.get("validation_loss") for cell in cells}


def test_cells_are_trained_once_and_others_anew(recipe, tmp_path, capsys):
    folder = tmp_path / "sweep"
    sweep = [recipe, "--output_dir", str(folder), "--jobs", "2"]
    command = [*sweep, "--over", "learning_rate=1e-4,1e-2"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "2 cells, 0 of them finished already" in out and out.count(": validation loss ") == 2
    first = losses(folder)
    assert all(loss > 0 for loss in first.values()) and first["1e-4"] != first["1e-2"]
    cell = folder / "cells" / "learning_rate=1e-2" / "run"
    assert json.loads((cell / "run.json").read_text())["learning_rate"] == 1e-2
    assert (folder / "heat_map.png").stat().st_size > 0

    assert main(command) == 0  # nothing is left to do
    assert "2 cells, 2 of them finished already" in capsys.readouterr().out and losses(folder) == first
    assert main([*sweep, "--over", "learning_rate=1e-2", "--max_steps", "3"]) == 0
    assert "1 cells, 0 of them finished already" in capsys.readouterr().out and losses(folder)["1e-2"] != first["1e-2"]


def test_a_cell_that_fails_is_said_and_the_others_count(recipe, tmp_path, capsys):
    folder = tmp_path / "sweep"
    # Nothing but training finds out that this cannot be resumed from.
    command = [recipe, "--over", "learning_rate=1e-3", "--over", "model_config={model_type: llama, hidden_size: 16, "
               "intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2},{model_type: llama, hidden_size: "
               "15, num_attention_heads: 2}", "--output_dir", str(folder), "--jobs", "2"]  # fmt: skip
    assert main(command) == 1
    out, error = capsys.readouterr()
    assert out.count(": validation loss ") == 1 and "failed with exit code" in out and "hidden" in out
    assert "1 cells failed; the command starts them anew:\n  gradscale sweep " in error
    assert "| missing |" in (folder / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to sweep over: give --over"),
        (["--over", "learning_rate=1e-3,x"], "learning_rate"),
        (["--over", "lerning_rate=1e-3"], "lerning_rate"),
        (["--over", "seed=1", "--no_such_key", "3"], "no_such_key"),
        (["--over", "seed=1", "--jobs", "0"], "--jobs 0 is not allowed: expected an integer of at least 1"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(recipe, tmp_path, capsys, options, message):
    folder = tmp_path / "sweep"
    assert main([recipe, *options, "--output_dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gradscale sweep: ") and message in error and not folder.exists()


def test_a_folder_with_something_else_in_it_is_refused(recipe, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    assert main([recipe, "--over", "seed=1", "--output_dir", str(tmp_path / "other")]) == 2
    assert "is not empty and holds no sweep" in capsys.readouterr().err
    assert main([recipe, "--over", "seed=1", "--output_dir", recipe]) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err


def test_ctrl_c_leaves_checkpoints_and_the_command_goes_on(recipe, tmp_path):
    folder = tmp_path / "sweep"
    arguments = [recipe, "--over", "learning_rate=1e-3", "--max_steps", "100000", "--output_dir", str(folder)]
    command = [sys.executable, "-m", "gradscale.cli.main", "sweep", *arguments]
    # A session of its own is what a terminal gives: Ctrl-C goes to all processes in it.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = folder / "cells" / "learning_rate=1e-3" / LOG
    until = time.monotonic() + 120
    while not (log.exists() and "'loss'" in log.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "stopped; 1 cells are missing. Continue with:\n  gradscale sweep " in error
    run = folder / "cells" / "learning_rate=1e-3" / "run"
    (checkpoint,) = run.glob("checkpoint-*")
    step = int(checkpoint.name.partition("-")[2])
    assert step >= 2 and (run.parent / ASKED).exists()
    logged = log.read_text().count("'loss'")
    again = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 120
    while log.read_text().count("'loss'") == logged and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(again.pid, signal.SIGINT)
    again.communicate(timeout=60)
    assert max(int(path.name.partition("-")[2]) for path in run.glob("checkpoint-*")) > step
