"""A study that is killed in the middle of a cell: nothing half-written, nobody left behind, and it goes on.

Guards against workers that outlive the study they were started by (they would train, or wait, for ever beside the one
that goes on), and against finished cells that are lost or half a file.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from gradscale.cli.bench import main
from tests.training.conftest import make_text

SHORT, LONG = 2, 10_000_000


def write_study(folder, steps):
    study = {
        "model_config": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "train_files": [str(folder / "text.txt")],
        "vocab_size": 260,
        "block_size": 16,
        "max_eval_tokens": 64,
        "batch_size": 2,
        "select_seeds": [1],
        "seeds": [1],
        "optimizers": {
            "adamw": {"optim": "torch.optim.AdamW", "learning_rates": [1e-3], "steps": SHORT},
            "slow": {"optim": "torch.optim.SGD", "learning_rates": [1e-4], "steps": steps, "eval_every": 1000},
        },
    }
    (folder / "study.yaml").write_text(json.dumps(study))


def command(folder, jobs="2"):
    return [
        "quality",
        str(folder / "study.yaml"),
        "--output_dir",
        str(folder / "out"),
        "--jobs",
        jobs,
        "--threads",
        "1",
    ]


def test_a_killed_study_leaves_nobody_behind_and_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text(make_text(40))
    write_study(tmp_path, LONG)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code = "import sys; from gradscale.cli.bench import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    children = []
    try:
        first = process.stdout.readline()
        assert "adamw lr=0.001 seed=1" in first
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    finally:
        for one in (process, *filter(psutil.Process.is_running, children)):
            one.kill()
        process.stdout.close()
    kept = list(Path(tmp_path / "out/cells").glob("*.json"))
    assert [path.name.split(",")[0] for path in kept] == ["adamw"]
    before = kept[0].read_text()
    assert not (tmp_path / "out/quality.md").exists()

    # The same study, but for the length of what had not finished.
    write_study(tmp_path, SHORT)
    began = time.time()
    assert main(command(tmp_path, jobs="1")) == 0
    said = capsys.readouterr().out
    assert "[1/1] slow" in said and "adamw lr=0.001 seed=1:" not in said
    assert kept[0].read_text() == before and kept[0].stat().st_mtime < began
    assert "| `slow` |" in (tmp_path / "out/quality.md").read_text()
