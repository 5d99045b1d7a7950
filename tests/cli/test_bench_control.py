"""Guards against a benchmark of ALSDGC that cannot be asked for, or whose wrong options fail late."""

import json

import pytest

from gradscale.cli.main import main


def test_loss_scale_writes_table_numbers_and_plot(tmp_path, capsys):
    out, plot = tmp_path / "scale.json", tmp_path / "scale.png"
    arguments = ["bench", "loss-scale", "--seeds", "1", "--steps", "400", "--json", str(out), "--plot", str(plot)]
    assert main(arguments) == 0
    assert "torch.amp.GradScaler" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["method"]["steps"] == 400
    assert {entry["rule"] for entry in report["results"]} >= {"ALSDGC robust", "Megatron"}
    assert plot.stat().st_size > 1000


def test_clipping_writes_table_numbers_and_plot(tmp_path, capsys):
    out, plot = tmp_path / "clip.json", tmp_path / "clip.png"
    arguments = ["bench", "clipping", "--seeds", "1", "--steps", "2", "--trace_steps", "700", "--lr", "1e-3"]
    assert main([*arguments, "--json", str(out), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "OLMo skip-step" in printed and "lr 0.001" in printed
    entry = json.loads(out.read_text())["results"][0]
    assert entry["rule"] == "none" and len(entry["losses"]["0.001"]) == 1
    assert plot.stat().st_size > 1000


def test_without_training_only_traces_are_measured(tmp_path, capsys):
    plot = tmp_path / "clip.svg"
    assert main(["bench", "clipping", "--seeds", "1", "--steps", "0", "--trace_steps", "700", "--plot", str(plot)]) == 0
    assert "validation loss" not in capsys.readouterr().out
    assert plot.is_file()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["clipping", "--noise", "0"], "'0' is not a number above 0 to 1"),
        (["clipping", "--bad", "0.6"], "'0.6' is not a number from 0 to 0.5"),
        (["clipping", "--lr", "nan"], "'nan' is not a number above 0"),
        (["clipping", "--trace_steps", "100"], "'100' is not an integer of at least 700"),
        (["loss-scale", "--seeds", "0"], "'0' is not an integer of at least 1"),
    ],
)
def test_wrong_options_are_refused_by_name(arguments, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


def test_a_plot_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, capsys):
    assert main(["bench", "loss-scale", "--plot", str(tmp_path / "plot.txt")]) == 2
    assert "--plot" in capsys.readouterr().err
