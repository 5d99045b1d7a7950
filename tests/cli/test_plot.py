"""`gradscale plot` on folders written by hand: runs that finished, were interrupted or diverged, checkpoints, sweeps.

Guards against pictures of the wrong folder, and against tracebacks and silence where a picture cannot be drawn.
"""

import json
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import pytest

import gradscale
from gradscale.cli.plot import main
from gradscale.sweep.grid import Axis
from gradscale.sweep.report import write_report
from tests.plots.checkpoints import save, trained


def make_run(folder, optim, *, losses, layers=3, clusters=3, groupings=(), checkpoint=False):
    folder.mkdir(parents=True)
    state = folder / "checkpoint-5" if checkpoint else folder
    state.mkdir(exist_ok=True)
    history = [{"step": step, "loss": loss} for step, loss in losses]
    history += [{"step": step, "eval_loss": loss} for step, loss in losses[1::2]]
    (state / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (folder / "run.json").write_text(json.dumps({"optim": optim}))
    layer = {"numel": 6, "counts": [0, *[2] * (clusters - 1)], "scales": [0.5, 1.0, 4.0][:clusters]}
    lines = [
        {"step": step, "waiting": [], "layers": {f"model.{i}.w": layer for i in range(layers)}} for step in groupings
    ]
    if lines:
        (folder / "scales.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lay')


def make_checkpoint(folder, kind=gradscale.SGGAdamW, **options):
    """A checkpoint of an optimizer that has grouped, and the log of a run."""
    optimizer, _ = trained(lambda model: kind(model.named_parameters(), lr=1e-3, **options))
    return save(optimizer, folder)


def make_norms(folder, steps=(1, 2, 3)):
    norms = {"model.layers.0.w": 0.6, "model.layers.1.w": 0.8, "model.head": 2.0}
    lines = [json.dumps({"step": step, "total": 2.2, "norms": norms}) + "\n" for step in steps]
    (folder / "gradient_norms.jsonl").write_text("".join(lines) + '{"step": 9, "tot')


def make_sweep(folder):
    axes = [Axis("learning_rate", ("1e-4", "1e-3")), Axis("seed", ("1", "2"))]
    found = {"status": "finished", "validation_loss": 3.25, "seed": 1}
    (folder / "cells").mkdir(parents=True)
    write_report(folder, axes, {("1e-4", "1"): found, ("1e-4", "2"): None, ("1e-3", "1"): found, ("1e-3", "2"): found})
    for path in folder.glob("heat_map.*"):
        path.unlink()
    return folder


def check_pictures(folder, names):
    for name in names:
        picture = matplotlib.image.imread(folder / f"{name}.png")
        assert picture.shape[0] > 300 and picture.shape[1] > 300
        assert picture[..., :3].std() > 0.02  # something is drawn
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")


def test_runs_of_one_command(tmp_path, capsys):
    make_run(tmp_path / "sgg_adamw", "sgg_adamw", losses=[(1, 3.0), (2, 2.0), (3, 1.5)], groupings=(1, 2))
    make_run(tmp_path / "adamw_torch", "adamw_torch", losses=[(1, 3.0), (2, None)])  # diverged
    assert main([str(tmp_path)]) == 0
    expected = [f"{name}.{kind}" for name in ("loss", "scales") for kind in ("png", "svg")]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in expected]
    check_pictures(tmp_path, ["loss", "scales"])
    svg = (tmp_path / "loss.svg").read_text()
    assert "<!-- sgg_adamw, validation: 2.0000 -->" in svg and "<!-- adamw_torch, training -->" in svg


def test_several_folders_side_by_side(tmp_path):
    make_run(tmp_path / "a", "sgg_adamw", losses=[(1, 3.0), (2, 2.0)], groupings=(1,), clusters=2)
    make_run(tmp_path / "b", "sgg_adamw", losses=[(1, 3.0), (2, 900.0)], groupings=(1, 2), checkpoint=True)
    make_run(tmp_path / "c", "sgd", losses=[(1, 3.0)], groupings=())
    output = tmp_path / "new" / "pictures"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c"), "--output", str(output)]) == 0
    check_pictures(output, ["loss", "scales"])
    svg = (output / "loss.svg").read_text()
    # Runs of one optimizer are told apart by their folders.
    assert "<!-- sgg_adamw (a), training -->" in svg and "<!-- sgd, training -->" in svg


def test_runs_without_groupings_have_no_scales(tmp_path):
    make_run(tmp_path / "a", "sgd", losses=[(1, 3.0), (2, 2.0)])
    assert main([str(tmp_path / "a")]) == 0
    assert (tmp_path / "a" / "loss.png").exists() and not (tmp_path / "a" / "scales.png").exists()


def test_folders_without_runs(tmp_path, capsys):
    assert main([str(tmp_path / "missing")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "gradscale.plots.draw", raising=False)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines() == ["gradscale plot needs matplotlib: pip install 'gradscale[plot]'"]


def test_everything_that_a_run_has_is_drawn_and_the_chosen_layers_are_said(tmp_path, capsys):
    run = tmp_path / "a"
    make_run(run, "sgg_adamw", losses=[(1, 3.0), (2, 2.0)], groupings=(1, 2))
    make_norms(run)
    make_checkpoint(run / "checkpoint-3", recluster_interval=3)
    make_checkpoint(run / "checkpoint-6", recluster_interval=3)
    assert main([str(run)]) == 0
    said = capsys.readouterr()
    names = ["loss", "scales", "clusters", "norms"]
    assert said.out.split() == [str(run / f"{name}.{kind}") for name in names for kind in ("png", "svg")]
    check_pictures(run, names)
    assert said.err == ""  # all three layers
    svg = (run / "clusters.svg").read_text()
    assert "<!-- sgg_adamw, step 6 -->" in svg and "<!-- layers.1.weight" not in svg and "<!-- 1, n = 240 -->" in svg
    assert main([str(run), "--what", "clusters", "norms", "--layers", "first", "0"]) == 2  # not in both
    assert "--layers first: no such layer" in capsys.readouterr().err


def test_layers_and_widths_are_those_asked_for(tmp_path, capsys):
    run = tmp_path / "run"
    folder = make_checkpoint(run / "checkpoint-6", recluster_interval=3)
    assert main([str(folder), "--layers", "first", "--width", "column"]) == 0
    assert capsys.readouterr().out.split()[0] == str(run / "clusters.png")  # the checkpoint is left as it is
    assert 650 < matplotlib.image.imread(run / "clusters.png").shape[1] < 670
    svg = (run / "clusters.svg").read_text()
    assert "<!-- first, n = 960 -->" in svg and "n = 240" not in svg
    for width in ("0", "wide", "nan", "50"):
        assert main([str(folder), "--width", width]) == 2
        assert f"--width {width} is not allowed: expected column, text, or inches" in capsys.readouterr().err
    assert main([str(folder), "--layers", "frist"]) == 2
    assert "no such layer in" in (error := capsys.readouterr().err) and "did you mean 'first'?" in error
    assert main([str(folder), "--what", "loss", "--layers", "first"]) == 2
    assert "--layers chooses layers of clusters and norms" in capsys.readouterr().err


def test_of_several_runs_each_checkpoint_is_a_picture_and_other_optimizers_have_none(tmp_path, capsys):
    for name in ("a", "b"):
        make_run(tmp_path / name, "sgg_adamw", losses=[(1, 3.0)])
        make_checkpoint(tmp_path / name / "checkpoint-6", recluster_interval=3)
    make_run(tmp_path / "c", "adamw", losses=[(1, 3.0)])
    make_checkpoint(tmp_path / "c" / "checkpoint-6", gradscale.DGSAdamW)
    assert main([str(tmp_path), "--what", "clusters"]) == 0
    drawn = [path.rpartition("/")[2] for path in capsys.readouterr().out.split()]
    assert drawn == [f"clusters_sgg_adamw_{name}.{kind}" for name in "ab" for kind in ("png", "svg")]


def test_a_sweep_gives_its_heat_map_again(tmp_path, capsys):
    folder = make_sweep(tmp_path / "sweep")
    capsys.readouterr()
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "heat_map.png"), str(folder / "heat_map.svg")]
    svg = (folder / "heat_map.svg").read_text()
    assert svg.count("<!-- 3.250 -->") == 3 and svg.count("<!-- missing -->") == 1  # also with an axis named seed


def test_what_is_asked_for_and_not_there_is_said_with_what_would_make_it(tmp_path, capsys):
    run, sweep = tmp_path / "run", make_sweep(tmp_path / "sweep")
    make_run(run, "sgd", losses=[(1, 3.0)])
    cases = [
        (run, "scales", "no groupings (scales.jsonl): `gradscale train` with an sgg_ optimizer"),
        (run, "clusters", "no checkpoint with an optimizer.pt: train with"),
        (run, "norms", "no gradient norms (gradient_norms.jsonl): `gradscale train --log_gradient_norms`"),
        (run, "heatmap", "no results of a sweep (sweep.json): `gradscale sweep`"),
        (sweep, "loss", "no logged loss (trainer_state.json)"),
    ]
    make_checkpoint(tmp_path / "dgs" / "checkpoint-6", gradscale.DGSAdamW)
    cases.append((tmp_path / "dgs" / "checkpoint-6", "clusters", "is a checkpoint of another optimizer"))
    capsys.readouterr()
    for folder, what, message in cases:
        assert main([str(folder), "--what", what]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("gradscale plot: ") and str(folder) in line and message in line
    assert main([str(tmp_path / "dgs" / "checkpoint-6")]) == 2
    assert "nothing to draw in" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([str(run), "--what", "colours"])
    assert caught.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_damaged_files_are_one_line_and_leave_nothing_half_drawn(tmp_path, capsys):
    run, sweep = tmp_path / "run", make_sweep(tmp_path / "sweep")
    make_run(run, "sgg_adamw", losses=[(1, 3.0)])
    folder = make_checkpoint(run / "checkpoint-6", recluster_interval=3)
    capsys.readouterr()
    for path, given in (
        (folder / "optimizer.pt", folder),
        (folder / "optimizer.pt", run),
        (run / "trainer_state.json", run),
        (sweep / "sweep.json", sweep),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert main([str(given), "--output", str(tmp_path / "pictures")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line and "damaged" in line and not (tmp_path / "pictures").exists()
        path.write_bytes(whole)
    (sweep / "sweep.json").unlink()
    assert main([str(sweep)]) == 2
    assert "has not ended (sweep.json is missing)" in capsys.readouterr().err
