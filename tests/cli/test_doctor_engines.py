"""`gradscale doctor` must see the engine that a run will have, and miss nothing that would spoil it."""

import json
import re
from pathlib import Path

import pytest
from transformers import TrainingArguments

from tests.cli.doctor_runs import RANKS, accelerate, ask, fsdp, options_of, write, zero

ROOT = Path(__file__).parent.parent.parent


def trainer_file(**settings):
    return "--fsdp_config", "fsdp.json", settings


def accelerate_file(config):
    return "--accelerate_config", "accelerate.yaml", config


def deepspeed_json(config):
    return "--deepspeed", "ds.json", config


DETECTED = {
    "one process": (accelerate_file({"distributed_type": "NO"}), "one process", {"shards": 1}),
    "ddp": (accelerate_file(accelerate("MULTI_GPU")), "DDP", {"shards": 1, "copies": 4}),
    "fsdp1 by default": (accelerate_file(accelerate("FSDP", fsdp_config={})), "FSDP1", {"flat_params": False}),
    "fsdp1 flat": (accelerate_file(fsdp(1, use_orig_params="false")), "FSDP1", {"flat_params": True}),
    "fsdp1 hybrid": (
        accelerate_file(fsdp(1, sharding_strategy="HYBRID_SHARD", more={"num_machines": 2})),
        "FSDP1",
        {"shards": 2, "copies": 2},
    ),
    "fsdp1 by number": (accelerate_file(fsdp(1, sharding_strategy=3)), "FSDP1", {"shards": 1, "copies": 4}),
    "fsdp2": (accelerate_file(fsdp(2)), "FSDP2", {"shards": 4, "offload": False}),
    "fsdp2 offloaded": (accelerate_file(fsdp(2, offload_params=True)), "FSDP2", {"offload": True}),
    "zero by accelerate": (
        accelerate_file(accelerate("DEEPSPEED", deepspeed_config={"zero_stage": 3})),
        "DeepSpeed ZeRO 3",
        {"shards": 4, "zero_stage": 3},
    ),
    "zero 0": (deepspeed_json(zero(0)), "DeepSpeed ZeRO 0 (nothing is sharded)", {"shards": 1, "copies": 4}),
    "zero 2": (deepspeed_json(zero(2)), "DeepSpeed ZeRO 2", {"shards": 4, "master_dtype": "float32"}),
    "zero auto": (deepspeed_json(zero("auto", {"bf16": {"enabled": "auto"}})), "DeepSpeed ZeRO 2", {}),
    "zero offloaded": (
        deepspeed_json(zero(2, {"zero_force_ds_cpu_optimizer": False}, offload_optimizer={"device": "cpu"})),
        "DeepSpeed ZeRO 2",
        {"offload": True},
    ),
    "trainer's default": (trainer_file(), "FSDP2", {"shards": 4}),
    "trainer's fsdp1": (trainer_file(fsdp_version=1, use_orig_params=False), "FSDP1", {"flat_params": True}),
    "trainer's offload": (trainer_file(cpu_offload=True), "FSDP2", {"offload": True}),
}


@pytest.mark.parametrize("name", DETECTED)
def test_the_engine_is_read_from_the_file(name, tmp_path, capsys):
    (option, file, content), engine, expected = DETECTED[name]
    processes = [] if option == "--accelerate_config" else ["--num_processes", RANKS]
    found = ask(capsys, option, write(tmp_path, file, content), *processes)["engine"]
    assert found["name"] == engine
    assert {key: found[key] for key in expected} == expected


def test_transformers_reads_the_trainer_s_settings_alike(tmp_path):
    """The defaults that are assumed above are those of the installed transformers."""
    plugin = TrainingArguments(output_dir=str(tmp_path), fsdp=True, fsdp_config={"version": 1}).fsdp_plugin_args
    assert (plugin["use_orig_params"], plugin["auto_wrap_policy"]) == (True, "TRANSFORMER_BASED_WRAP")
    assert plugin["state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_of_this_project_would_run(path, tiny, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)  # from where they name further files
    report = ask(capsys, "--model", tiny, "--accelerate_config", path, "--mixed_precision", "no")
    assert report["would_run"] and report["engine"]["kind"] != "other"


def test_a_deepspeed_file_is_found_through_the_accelerate_configuration(tmp_path, capsys):
    file = write(tmp_path, "ds.json", zero(1))
    config = {**accelerate("DEEPSPEED", deepspeed_config={"deepspeed_config_file": str(file)}), "mixed_precision": None}
    report = ask(capsys, "--accelerate_config", write(tmp_path, "a.yaml", config), "--num_processes", 6)
    assert (report["engine"]["zero_stage"], report["engine"]["shards"]) == (1, 6)


def test_the_command_line_wins_over_the_file(tmp_path, capsys):
    config = write(tmp_path, "a.yaml", fsdp(2, 2))
    engine = ask(capsys, "--accelerate_config", config, "--num_processes", 3, "--mixed_precision", "bf16")["engine"]
    assert (engine["processes"], engine["shards"], engine["mixed_precision"]) == (3, 3, "bf16")


CPU = {"device": "cpu"}
KEEP = {"zero_force_ds_cpu_optimizer": False}
NOT_SUPPORTED = {
    "offload that replaces the optimizer": (zero(2, offload_optimizer=CPU), [], "zero_force_ds_cpu_optimizer"),
    "the same by its old name": (zero(2, cpu_offload=True), [], "zero_force_ds_cpu_optimizer"),
    "offload by accelerate alone": (
        accelerate("DEEPSPEED", deepspeed_config={"zero_stage": 2, "offload_optimizer_device": "cpu"}),
        [],
        "zero_force_ds_cpu_optimizer",
    ),
    "nvme": (zero(3, KEEP, offload_optimizer={"device": "nvme"}), [], "nvme"),
    "parameters on nvme": (zero(3, KEEP, offload_param={"device": "nvme"}), [], "nvme"),
    "partial offload": (zero(3, KEEP, offload_optimizer={**CPU, "ratio": 0.5}), [], "ratio"),
    "super offload": (zero(3, KEEP, offload_optimizer={**CPU, "super_offload": True}), [], "super_offload"),
    "zenflow": (zero(2, zenflow={"topk_ratio": 0.1}), [], "zenflow"),
    "an optimizer of DeepSpeed's": (zero(2, {"optimizer": {"type": "AdamW"}}), [], "optimizer"),
    "autocast in float16": (zero(3, {"torch_autocast": {"enabled": True, "dtype": "float16"}}), [], "torch_autocast"),
    "masters in bfloat16": (
        zero(2, {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}),
        [],
        "bf16_master_weights_and_grads",
    ),
    "tensor parallel of DeepSpeed": (zero(1, {"tensor_parallel": {"autotp_size": 2}}), [], "tensor_parallel"),
    "settings twice": (
        accelerate("DEEPSPEED", deepspeed_config={"deepspeed_config_file": "{folder}/other.json", "zero_stage": 2}),
        [],
        "zero_stage, mixed_precision",
    ),
    "megatron": (accelerate("MEGATRON_LM"), [], "Megatron-LM"),
    "xla": (accelerate("XLA"), [], "PyTorch/XLA"),
    "hidden layers chosen": (fsdp(1, use_orig_params=False), ["--optim_target_modules", "q_proj"], "use_orig_params"),
    "frozen and trained in a unit": (
        fsdp(1, use_orig_params=False, auto_wrap_policy="NO_WRAP"),
        ["--peft_config", "{folder}/adapter_config.json"],
        "frozen and trained",
    ),
    "blocks of sharded layers": (fsdp(2), ["--optim_args", "grouping=static"], "grouping='static' needs whole layers"),
    "labels of shards in host memory": (
        zero(2),
        ["--optim_args", "labels=frozen,labels_device=cpu"],
        "labels_device='cpu' needs",
    ),
    "local checkpoints": (fsdp(1, state_dict_type="LOCAL_STATE_DICT"), [], "LOCAL_STATE_DICT"),
    "a layer class that is not there": (
        fsdp(2, transformer_layer_cls_to_wrap="GPT2Block"),
        [],
        "GPT2Block",
    ),
    "a mesh of another size": (
        fsdp(2, more={"parallelism_config": {"parallelism_config_dp_shard_size": 2}}),
        [],
        "parallelism_config makes 2 processes",
    ),
    "machines that do not divide": (accelerate("MULTI_GPU", 5, num_machines=2), [], "would start 4"),
    "fp16 weights in fp16": (
        accelerate("MULTI_GPU"),
        ["--dtype", "fp16", "--mixed_precision", "fp16"],
        "unscale gradients",
    ),
}


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_is_not_supported_is_named_with_exit_status_1(name, tiny, tmp_path, capsys):
    config, options, needle = NOT_SUPPORTED[name]
    write(tmp_path, "other.json", zero(2))
    # Trains vectors that are no layer, and so no units of their own.
    adapters = {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}
    write(tmp_path, "adapter_config.json", adapters)
    config = json.loads(json.dumps(config).replace("{folder}", str(tmp_path)))
    options = [option.replace("{folder}", str(tmp_path)) for option in options]
    report = ask(capsys, "--model", tiny, *options_of(tmp_path, config), *options, code=1)
    assert len(report["not_supported"]) == 1 and needle in report["not_supported"][0], report["not_supported"]
    assert not report["would_run"]
    assert ("memory" in report) == (report["engine"]["kind"] != "other")


WATCH_OUT = {
    "names hidden by FSDP1": (fsdp(1, use_orig_params=False), [], "decays biases"),
    "tensor parallel": (
        fsdp(2, more={"parallelism_config": {f"parallelism_config_{name}_size": 2 for name in ("dp_shard", "tp")}}),
        [],
        "tensor parallel",
    ),
    "cpu turns FSDP into DDP": (fsdp(2, more={"use_cpu": True}), [], "DDP"),
    "ranks through MPI": (accelerate("MULTI_CPU"), [], "MPI"),
    "other devices": (accelerate("MULTI_NPU"), [], "NPU"),
    "not tested": (zero(3, zero_hpz_partition_size=2), [], "zero_hpz_partition_size"),
    "an unknown key": (fsdp(2, nonsense=1), [], "fsdp_nonsense"),
    "never grouped": (
        accelerate("NO"),
        ["--optim_args", "recluster_interval=500", "--max_steps", "300"],
        "never|no layer",
    ),
    "nothing scaled": (accelerate("NO"), ["--optim_args", "n_clusters=1"], "no layer is scaled"),
}


@pytest.mark.parametrize("name", WATCH_OUT)
def test_what_is_likely_not_meant_is_said_with_exit_status_0(name, tiny, tmp_path, capsys):
    config, options, needle = WATCH_OUT[name]
    report = ask(capsys, "--model", tiny, *options_of(tmp_path, config), *options)
    assert any(re.search(needle, sentence) for sentence in report["watch_out"]), report["watch_out"]
