"""Guards against slow help, tracebacks for typing errors, and exit codes that scripts cannot use."""

import dataclasses
import subprocess
import sys

import pytest

from gradscale.cli.train import help_text, main
from gradscale.training.arguments import TrainArguments


def test_help_names_every_key_of_ours(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.strip() == help_text()
    for field in dataclasses.fields(TrainArguments):
        assert f"--{field.name} " in out
    assert max(map(len, out.splitlines())) <= 130 and len(out.splitlines()) < 45


def test_help_and_missing_files_load_no_torch(tmp_path):
    code = (
        "import os, sys; from gradscale.cli.main import main\n"
        "codes = [main(['train', '--help']), main(['train']), main(['train', 'missing.yaml'])]\n"
        "print(codes, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[0, 2, 2] False False"
    assert "CONFIG.yaml is missing" in done.stderr and "usage: gradscale train CONFIG.yaml" in done.stderr
    assert "gradscale train: there is no file 'missing.yaml'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["seed: [1\n", "sede: 1\n", "seed: x\n", "corpus: stdlib\n", "- 1\n"])
def test_errors_are_short_and_exit_with_2(tmp_path, capsys, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gradscale train: ") and len(error.splitlines()) == 1


def test_ctrl_c_before_training(tmp_path, capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("gradscale.training.settings.read_command", interrupted)
    assert main(["config.yaml"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_missing_libraries_are_named_with_the_command_that_installs_them(monkeypatch, capsys):
    from gradscale.cli import train

    monkeypatch.setattr(train, "_LIBRARIES", ("yaml", "no_such_library"))
    assert train.main(["config.yaml"]) == 2
    assert "no_such_library not installed: pip install 'gradscale[train]'" in capsys.readouterr().err
