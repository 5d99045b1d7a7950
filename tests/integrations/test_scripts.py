"""Unmodified third-party scripts, none of which imports gradscale, through every door and launcher.

Every launch imports torch and transformers anew, so each covers several promises. `CLOSED` shuts the door that
`import torch` opens, to see that a launcher alone is enough.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent / "scripts"
CLOSED = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
# transformers 4.46 reads its own random state, numpy objects, in a way that torch has refused since 2.6, whatever the
# optimizer; this is torch's switch for such files.
OLD_FILES = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"} if version("transformers").startswith("4.46.") else {}
GRADSCALE = [sys.executable, "-m", "gradscale.cli.main"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
COMMON = [
    *("--use_cpu", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--report_to", "none"),
    *("--learning_rate", "1e-2", "--optim", "sgg_adamw", "--optim_args", "n_clusters=2,recluster_interval=0.5"),
]


def launch(command, *, code=0, **environment):
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


def result(done):
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def sgg_steps(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["step"] for entry in history if "sgg/scale_mean" in entry]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """`python script.py`, no launcher: six steps, with a checkpoint after three."""
    folder = tmp_path_factory.mktemp("clm")
    command = [sys.executable, SCRIPTS / "run_clm.py", "--output_dir", folder, "--max_steps", 6, "--save_steps", 3]
    done = launch([*command, *COMMON])
    assert result(done) == {"optimizer": "SGGAdamW", "world": 1}
    return folder


def test_without_a_launcher(uninterrupted):
    assert sgg_steps(uninterrupted) == [3, 6]


def test_gradscale_run_resumes_bit_for_bit(uninterrupted, tmp_path):
    done = launch(
        [
            *(*GRADSCALE, "run", SCRIPTS / "run_clm.py", "--output_dir", tmp_path, "--max_steps", 6, "--save_steps", 3),
            *("--resume_from_checkpoint", uninterrupted / "checkpoint-3", *COMMON),
        ],
        **CLOSED,
        **OLD_FILES,
    )
    assert result(done)["optimizer"] == "SGGAdamW"
    ours, theirs = (
        torch.load(folder / "checkpoint-6" / "optimizer.pt", weights_only=True) for folder in (tmp_path, uninterrupted)
    )
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys() and len(ours["state"]) > 0
    for key, state in theirs["state"].items():
        assert ours["state"][key].keys() == state.keys()
        assert all(torch.equal(ours["state"][key][name], value) for name, value in state.items())
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path, uninterrupted)]
    assert weights[0] == weights[1]


def test_gradscale_run_reaches_the_children_of_torchrun(tmp_path):
    # The launcher is a command here; its ranks are Python processes two levels below.
    done = launch(
        [
            *(*GRADSCALE, "run", *TORCHRUN, "--standalone", "--nproc_per_node", 2, SCRIPTS / "run_clm.py"),
            *("--output_dir", tmp_path, "--max_steps", 4, "--ddp_backend", "gloo", *COMMON),
        ],
        **CLOSED,
    )
    assert result(done) == {"optimizer": "SGGAdamW", "world": 2}
    assert sgg_steps(tmp_path) == [2, 4]


def test_torchrun_starts_gradscale_run_with_a_json_file(tmp_path):
    config = tmp_path / "args.json"
    config.write_text(
        json.dumps(
            {
                "output_dir": str(tmp_path / "out"),
                "use_cpu": True,
                "max_steps": 2,
                "ddp_backend": "gloo",
                "report_to": "none",
                "logging_steps": 1,
                "optim": "sgg_adam",
                "optim_args": {"n_clusters": 2, "recluster_interval": 1},
            }
        )
    )
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", 1, "-m", "gradscale.run", SCRIPTS / "run_clm.py", config]
    assert result(launch(command, **CLOSED)) == {"optimizer": "SGGAdam", "world": 1}
    assert sgg_steps(tmp_path / "out") == [1, 2]


def test_closed_door_is_closed(tmp_path):
    command = [sys.executable, SCRIPTS / "run_clm.py", "--output_dir", tmp_path, "--optim", "sgg_adamw"]
    assert "invalid choice: 'sgg_adamw'" in launch(command, code=2, GRADSCALE_AUTOLOAD="0").stderr


def test_trl_sft_with_a_yaml_file(tmp_path):
    config = tmp_path / "sft.yaml"
    config.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nmax_steps: 4\nlogging_steps: 1\nreport_to: none\n"
        "optim: sgg_adamw\noptim_args: {n_clusters: 2, recluster_interval: 0.5}\n"
        "optim_target_modules: [q_proj, v_proj]\nlearning_rate: 1e-4\n"
    )
    done = launch([sys.executable, SCRIPTS / "sft.py", "--config", config, "--max_steps", 2])
    assert result(done)["optimizer"] == "SGGAdamW"
    assert sgg_steps(tmp_path) == [1, 2]


def test_trl_sft_of_an_adapter_with_a_yaml_file(tmp_path):
    config = tmp_path / "sft.yaml"
    config.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nmax_steps: 4\nlogging_steps: 1\nreport_to: none\nlearning_rate: 1e-2\n"
        "optim: sgg_adamw\noptim_args: {n_clusters: 2, recluster_interval: 0.5, pool: lora}\n"
        "use_peft: true\nlora_r: 4\nlora_target_modules: [q_proj, v_proj]\n"
    )
    done = launch([sys.executable, SCRIPTS / "sft.py", "--config", config])
    adapter = {"tensors": 8, "same": True, "trained": True}
    assert result(done) == {"optimizer": "SGGAdamW", "adapter": adapter, "state": 8}
    assert sgg_steps(tmp_path) == [2, 4]


def test_trl_dpo_of_an_adapter_under_gradscale_run(tmp_path):
    script = [SCRIPTS / "dpo.py", "--output_dir", tmp_path, "--max_steps", 2, "--use_peft", "--use_dora"]
    adapter = ["--lora_r", 4, "--lora_target_modules", "q_proj", "v_proj", "up_proj"]
    done = launch([sys.executable, "-m", "gradscale.run", *script, *adapter, *COMMON], **CLOSED)
    # A, B and DoRA's magnitude of three layers in each of two blocks.
    adapter = {"tensors": 18, "same": True, "trained": True}
    assert result(done) == {"optimizer": "SGGAdamW", "adapter": adapter, "state": 18}
    assert sgg_steps(tmp_path) == [1, 2]


def test_trl_dpo_under_gradscale_run(tmp_path):
    script = [SCRIPTS / "dpo.py", "--output_dir", tmp_path, "--max_steps", 2, "--optim_target_modules", "q_proj,v_proj"]
    done = launch([sys.executable, "-m", "gradscale.run", *script, *COMMON], **CLOSED)
    assert result(done)["optimizer"] == "SGGAdamW"
    assert sgg_steps(tmp_path) == [1, 2]


def test_trl_help_and_errors_before_the_model_loads(tmp_path):
    done = launch([sys.executable, SCRIPTS / "sft.py", "--help"])
    assert "sgg_adamw" in done.stdout
    command = [sys.executable, SCRIPTS / "sft.py", "--output_dir", tmp_path, "--use_cpu", "--optim", "sgg_adamw"]
    done = launch([*command, "--optim_args", "n_cluster=3"], code=1)
    assert "unknown option n_cluster=3" in done.stderr and "'n_clusters'" in done.stderr
