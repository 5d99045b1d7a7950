"""Guards against deleting what no run wrote, and against resuming from half a checkpoint."""

import json

import pytest

from gradscale.training.errors import ConfigError
from gradscale.training.output_folder import (
    check_output_folder,
    clear_output_folder,
    find_checkpoints,
    resume_points,
    run_folders,
)


def make_checkpoint(folder, step, *, complete=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "optimizer.pt").write_text("")
    if complete:
        (path / "trainer_state.json").write_text("{}")
    return path


def make_run(folder, optim):
    make_checkpoint(folder, 5)
    (folder / "run.json").write_text(json.dumps({"optim": optim, "status": "finished"}))
    (folder / "model.safetensors").write_text("")
    (folder / "notes.txt").write_text("mine")


def test_checkpoints_are_ordered_by_step_and_complete(tmp_path):
    for step in (5, 100, 20):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 200, complete=False)
    (tmp_path / "checkpoint-old").mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-20", "checkpoint-100"]


def test_a_folder_in_use_is_refused(tmp_path):
    names = ["sgg_adamw"]
    check_output_folder(tmp_path / "new", names, resume=False, overwrite=False)
    (tmp_path / "failed" / "sgg_adamw").mkdir(parents=True)  # left by a run that failed before its first file
    check_output_folder(tmp_path / "failed", names, resume=False, overwrite=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        check_output_folder(tmp_path, names, resume=False, overwrite=True)
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        check_output_folder(tmp_path / "file", names, resume=False, overwrite=False)
    make_run(tmp_path / "run", "sgg_adamw")
    with pytest.raises(ConfigError, match="--resume_from_checkpoint last.*--overwrite_output_dir"):
        check_output_folder(tmp_path / "run", names, resume=False, overwrite=False)
    check_output_folder(tmp_path / "run", names, resume=True, overwrite=False)
    check_output_folder(tmp_path / "run", names, resume=False, overwrite=True)


def test_overwriting_deletes_runs_and_nothing_else(tmp_path):
    make_run(tmp_path / "sgg_adamw", "sgg_adamw")
    make_run(tmp_path / "other_experiment", "sgg_adamw")
    (tmp_path / "summary.json").write_text("{}")
    clear_output_folder(tmp_path, ["sgg_adamw", "adamw_torch"])
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == [
        "other_experiment/checkpoint-5/optimizer.pt",
        "other_experiment/checkpoint-5/trainer_state.json",
        "other_experiment/model.safetensors",
        "other_experiment/notes.txt",
        "other_experiment/run.json",
        "sgg_adamw/notes.txt",
    ]


def test_where_runs_resume(tmp_path):
    single = run_folders(tmp_path, ["a"])
    pair = run_folders(tmp_path, ["a", "b"])
    assert single == {"a": tmp_path} and pair == {"a": tmp_path / "a", "b": tmp_path / "b"}
    with pytest.raises(ConfigError, match="there is no complete checkpoint in output_dir"):
        resume_points("last", tmp_path, single)
    last = make_checkpoint(tmp_path, 7)
    make_checkpoint(tmp_path, 9, complete=False)
    assert resume_points("last", tmp_path, single) == {"a": last}
    assert resume_points(str(tmp_path), tmp_path, single) == {"a": last}
    assert resume_points(str(last), tmp_path, single) == {"a": last}
    assert resume_points(None, tmp_path, pair) == {"a": None, "b": None}
    of_a = make_checkpoint(tmp_path / "a", 3)
    assert resume_points("last", tmp_path, pair) == {"a": of_a, "b": None}


def test_wrong_places_to_resume_from(tmp_path):
    single = run_folders(tmp_path, ["a"])
    for name in ("missing", "empty", "weights", "half"):
        if name != "missing":
            (tmp_path / name).mkdir()
    (tmp_path / "weights" / "trainer_state.json").write_text("{}")
    make_checkpoint(tmp_path / "run", 4)
    for name, message in (
        ("missing", "there is no such folder"),
        ("empty", "is not a checkpoint of a Trainer"),
        ("weights", "holds no optimizer"),
        ("run", "did you mean '.*checkpoint-4'"),
    ):
        with pytest.raises(ConfigError, match=message):
            resume_points(str(tmp_path / name), tmp_path, single)
    with pytest.raises(ConfigError, match="with compare_optim every run continues from its own"):
        resume_points(str(tmp_path / "run" / "checkpoint-4"), tmp_path, run_folders(tmp_path, ["a", "b"]))
