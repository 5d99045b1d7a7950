"""Unmodified scripts with `--alsdgc`: transformers' parser and TRL's, the command line and a YAML file.

Each launch imports everything anew, so each covers several promises.
"""

import json
import sys
from pathlib import Path

from tests.integrations.test_scripts import CLOSED, GRADSCALE, SCRIPTS, launch, result

COMMON = [*("--use_cpu", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--report_to", "none")]


def training_logs(folder):
    history = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def test_trl_with_an_optimizer_of_torchs_and_no_launcher(tmp_path):
    script = [sys.executable, SCRIPTS / "sft.py", "--output_dir", tmp_path, "--max_steps", "4", *COMMON]
    done = launch([*script, "--alsdgc", "robust,warmup_threshold=0.05"])
    assert result(done)["optimizer"] == "AdamW"
    logs = training_logs(tmp_path)
    assert [entry["alsdgc/threshold"] for entry in logs] == [0.05] * 4
    assert all(entry["alsdgc/clipped_norm"] <= 0.0501 < entry["grad_norm"] for entry in logs)
    assert "ALSDGC (robust): 4 steps, 4 clipped (100.0 %), 0 skipped" in done.stdout


def test_trl_with_a_block_of_a_yaml_file_through_gradscale_run(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nmax_steps: 3\nlogging_steps: 1\nreport_to: none\noptim: sgg_adamw\n"
        "alsdgc:\n  mode: robust\n  warmup_threshold: 5.0e-2\n  per_group: true\n"
    )
    done = launch([*GRADSCALE, "run", SCRIPTS / "sft.py", "--config", config], **CLOSED)
    assert result(done)["optimizer"] == "SGGAdamW"
    assert [entry["alsdgc/threshold"] for entry in training_logs(tmp_path)] == [0.05] * 3


def test_a_wrong_option_ends_the_script_before_a_model_is_made(tmp_path):
    command = [sys.executable, SCRIPTS / "run_clm.py", "--output_dir", tmp_path, "--alsdgc", "robust,windw=3", *COMMON]
    done = launch(command, code=1)
    assert "--alsdgc: unknown option windw='3' of ALSDGC, did you mean 'window'" in done.stderr
