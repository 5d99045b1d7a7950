"""`gradscale plot` on runs written by hand: finished, interrupted, diverged, several side by side."""

import json
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import pytest

from gradscale.cli.plot import main


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
    monkeypatch.delitem(sys.modules, "gradscale.plots.style", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines() == ["gradscale plot needs matplotlib: pip install 'gradscale[plot]'"]
