"""`accelerate_configs/`: every file loads, and the documented commands run a script that knows nothing of gradscale."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from gradscale.integrations.deepspeed_config import unsupported_settings

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
CLM = ROOT / "tests" / "integrations" / "scripts" / "run_clm.py"
SHARDED_CLM = Path(__file__).parent / "scripts" / "sharded_clm.py"
# On CPU; the door that `import torch` opens is shut, so that the documented command itself must reach the script.
ARGUMENTS = [
    *(
        "--use_cpu",
        "--per_device_train_batch_size",
        "2",
        "--max_steps",
        "4",
        "--save_steps",
        "4",
        "--logging_steps",
        "1",
    ),
    *("--report_to", "none", "--optim", "sgg_adamw", "--optim_args", "recluster_interval=0.5"),
]
ENVIRONMENT = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads_and_tells_its_command(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 2
    assert config.num_machines == (2 if "multi_node" in path.stem else 1)
    engine = re.match("ddp|fsdp[12]|zero[123]", path.stem).group()
    kind = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero": "DEEPSPEED"}[engine.rstrip("123")]
    assert config.distributed_type.value == kind
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == int(engine[-1])
    if kind == "DEEPSPEED":
        settings = config.deepspeed_config
        file = settings.get("deepspeed_config_file")
        assert (file is not None) == ("offload" in path.stem)
        zero = (
            json.loads((ROOT / file).read_text()) if file else {"zero_optimization": {"stage": settings["zero_stage"]}}
        )
        assert zero["zero_optimization"]["stage"] == int(engine[-1])
        assert unsupported_settings(zero) == []
    comment = re.sub(r"\\\n#\s+", "", path.read_text().partition("compute_environment")[0])
    assert f"accelerate launch --config_file accelerate_configs/{path.name}" in comment
    assert "-m gradscale.run train.py --optim sgg_adamw" in comment


def test_every_engine_has_its_configurations():
    engines = ["ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload"]
    expected = {f"{engine}{variant}" for engine in engines for variant in ("", "_multi_node")}
    names = {path.stem for path in CONFIGS}
    assert names == expected | {"ddp_cpu", "fsdp2_hsdp"}
    table = (ROOT / "accelerate_configs" / "README.md").read_text()
    assert all(f"`{name}.yaml`" in table for name in names)


def start(command, script, *arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, (*command, script, *ARGUMENTS, *arguments))],
        cwd=ROOT,
        env={**inherited, **ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(*processes):
    """What the main process of a run reports."""
    lines = []
    for process in processes:
        output, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors[-3000:]
        lines += [line for line in output.splitlines() if line.startswith("RESULT ")]
    (line,) = lines
    return json.loads(line.removeprefix("RESULT "))


def launch(config, port, *options):
    """The documented command, as far as the script's name."""
    path = ROOT / "accelerate_configs" / config
    command = ("accelerate.commands.launch", "--config_file", path, "--main_process_port", port, *options)
    return (*command, "-m", "gradscale.run")


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def sgg_steps(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["step"] for entry in history if "sgg/scale_mean" in entry]


def test_ddp_on_cpu(tmp_path, port):
    process = start(launch("ddp_cpu.yaml", port), CLM, "--output_dir", tmp_path)
    assert result(process) == {"optimizer": "SGGAdamW", "world": 2}
    assert sgg_steps(tmp_path) == [2, 4]
    assert (tmp_path / "checkpoint-4" / "optimizer.pt").is_file()


def test_fsdp2(tmp_path, port):
    process = start(launch("fsdp2.yaml", port), SHARDED_CLM, "--output_dir", tmp_path)
    assert result(process) == {"optimizer": "SGGAdamW", "world": 2}
    assert sgg_steps(tmp_path) == [2, 4]
    # Sharded state is written by FSDP2 alone.
    assert (tmp_path / "checkpoint-4" / "optimizer_0" / ".metadata").is_file()


def test_fsdp1(tmp_path, port):
    on_cpu = ("--fsdp_sync_module_states", "false", "--fsdp_cpu_ram_efficient_loading", "false")
    process = start(launch("fsdp1.yaml", port, *on_cpu), SHARDED_CLM, "--output_dir", tmp_path)
    assert result(process) == {"optimizer": "SGGAdamW", "world": 2}
    assert sgg_steps(tmp_path) == [2, 4]
    assert (tmp_path / "checkpoint-4" / "optimizer_0" / ".metadata").is_file()


def test_zero2_with_the_training_arguments_own_accumulation_and_clipping(tmp_path, port):
    ours = ("--gradient_accumulation_steps", 2, "--max_grad_norm", 0.25)
    process = start(launch("zero2.yaml", port), SHARDED_CLM, "--output_dir", tmp_path, *ours, DS_ACCELERATOR="cpu")
    engine = {"gradient_accumulation_steps": 2, "gradient_clipping": 0.25}
    assert result(process) == {"optimizer": "DeepSpeedZeroOptimizer", "world": 2, "engine": engine}
    assert sgg_steps(tmp_path) == [2, 4]
    assert len(list((tmp_path / "checkpoint-4" / "global_step4").glob("*optim_states.pt"))) == 2


def test_zero3_with_offload_on_two_machines(tmp_path, port):
    machines = [
        start(
            launch("zero3_offload_multi_node.yaml", port, "--machine_rank", rank, "--num_processes", 2),
            *(SHARDED_CLM, "--output_dir", tmp_path),
            DS_ACCELERATOR="cpu",
        )
        for rank in (0, 1)
    ]
    assert result(*machines)["optimizer"] == "DeepSpeedZeroOptimizer_Stage3"
    assert sgg_steps(tmp_path) == [2, 4]


def test_the_launcher_of_deepspeed(tmp_path, port):
    config = tmp_path / "zero1.json"
    config.write_text(json.dumps({"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 1}}))
    deepspeed = ("deepspeed.launcher.runner", "--num_gpus", 2, "--master_port", port, "--module", "gradscale.run")
    process = start(deepspeed, SHARDED_CLM, "--output_dir", tmp_path, "--deepspeed", config, DS_ACCELERATOR="cpu")
    assert result(process)["optimizer"] == "DeepSpeedZeroOptimizer"
    assert sgg_steps(tmp_path) == [2, 4]


def test_fsdp2_on_two_machines(tmp_path, port):
    """Both are this one, with one rank each: the rendezvous, ranks and checkpoint folder of a multi-node run."""
    machines = [
        start(
            launch("fsdp2_multi_node.yaml", port, "--machine_rank", rank, "--num_processes", 2),
            *(SHARDED_CLM, "--output_dir", tmp_path),
        )
        for rank in (0, 1)
    ]
    assert result(*machines) == {"optimizer": "SGGAdamW", "world": 2}
    assert sgg_steps(tmp_path) == [2, 4]
    assert (tmp_path / "checkpoint-4" / "optimizer_0" / ".metadata").is_file()


def test_fsdp2_under_torchrun_without_a_config(tmp_path):
    config = tmp_path / "fsdp.json"
    config.write_text(json.dumps({"version": 2, "state_dict_type": "FULL_STATE_DICT"}))
    torchrun = ("torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "gradscale.run")
    frozen = ("--optim_args", "recluster_interval=0.5,labels=frozen")
    process = start(torchrun, SHARDED_CLM, "--output_dir", tmp_path, "--fsdp", "--fsdp_config", config, *frozen)
    assert result(process) == {"optimizer": "SGGAdamW", "world": 2}
    assert sgg_steps(tmp_path) == [2, 4]
    state = torch.load(tmp_path / "checkpoint-4" / "optimizer.bin", weights_only=True)["state"]
    layer = state["model.layers.0.self_attn.q_proj.weight"]
    assert layer["labels"].dtype == torch.uint8 and layer["labels"].shape == layer["exp_avg"].shape
    assert set(state["model.embed_tokens.weight"]) == {"step", "exp_avg", "exp_avg_sq"}  # the base's alone
