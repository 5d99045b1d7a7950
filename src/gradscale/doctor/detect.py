"""Which engine the options of a command name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gradscale.doctor.deepspeed_settings import deepspeed_engine, deepspeed_file
from gradscale.doctor.engine import Engine, plain_engine, precision
from gradscale.doctor.files import integer, read_mapping, section, unknown_keys
from gradscale.doctor.findings import Findings
from gradscale.doctor.fsdp_settings import DECISIVE, fsdp_engine, trainer_fsdp_engine
from gradscale.options import nearest
from gradscale.training.errors import ConfigError

_DEVICES = ("GPU", "CPU", "NPU", "MLU", "SDAA", "MUSA", "XPU", "HPU", "NEURON")
_TYPES = ("NO", *(f"MULTI_{device}" for device in _DEVICES), "DEEPSPEED", "FSDP", "XLA", "TPU", "MEGATRON_LM")
# accelerate refuses these beside a deepspeed_config_file.
_EITHER_OR = ("gradient_accumulation_steps", "gradient_clipping", "zero_stage", "offload_optimizer_device",
              "offload_param_device", "offload_param_nvme_path", "offload_optimizer_nvme_path",
              "zero3_save_16bit_model")  # fmt: skip


def detect_engine(
    *,
    accelerate_config: str | None,
    fsdp_config: str | None,
    deepspeed: str | None,
    num_processes: int | None,
    mixed_precision: str | None,
    findings: Findings,
) -> Engine:
    """Return the engine that the options name; at most one of the three files is given.

    Args:
        accelerate_config: file of `accelerate launch --config_file`.
        fsdp_config: file of the Trainer's `--fsdp_config`.
        deepspeed: file of the Trainer's `--deepspeed`.
        num_processes: wins over the file's.
        mixed_precision: wins over the file's, as the Trainer's `--bf16` and `--fp16` do.
        findings: gets what is not supported.

    Raises:
        ConfigError: a file is missing or malformed, or something in it is unknown.
    """
    if accelerate_config is not None:
        return _accelerate(accelerate_config, num_processes, mixed_precision, findings)
    origin = fsdp_config or deepspeed
    if origin is None:
        processes = num_processes or 1
        return plain_engine("--num_processes" if num_processes else "no file", processes, 1, mixed_precision or "no")
    if num_processes is None:
        raise ConfigError("--num_processes is missing: how many ranks there are, on all machines together")
    base = plain_engine(origin, num_processes, 1, mixed_precision or "no")
    if fsdp_config is not None:
        return trainer_fsdp_engine(fsdp_config, base, findings)
    return deepspeed_engine(deepspeed_file(origin, "--deepspeed"), base, findings)


def _accelerate(path: str, num_processes: int | None, mixed_precision: str | None, findings: Findings) -> Engine:
    config = read_mapping(path, "--accelerate_config")
    defaults = _launch_defaults(path, config, findings)
    kind = str(config.get("distributed_type", ""))
    if kind not in _TYPES:
        what = f"distributed_type={kind!r} is unknown{nearest(kind, _TYPES)}" if kind else "distributed_type is missing"
        raise ConfigError(f"{path}: {what}; accelerate knows {', '.join(_TYPES)}")
    given = config.get("num_processes", 1 if kind == "NO" else -1) if num_processes is None else num_processes
    if given == -1:
        raise ConfigError(f"{path}: num_processes is missing (or -1): give --num_processes")
    processes = integer(given, "num_processes", path)
    machines = integer(config.get("num_machines") or 1, "num_machines", path)
    mixed = mixed_precision or precision(config.get("mixed_precision"), "mixed_precision", path)
    if processes % machines:
        findings.not_supported.append(
            f"{processes} processes on {machines} machines: accelerate would start {processes // machines * machines}"
        )
    base = plain_engine(path, processes, machines, mixed)
    if config.get("use_cpu") and kind in ("FSDP", "MULTI_GPU"):
        findings.watch_out.append(
            f"use_cpu with distributed_type {kind}: on CPU accelerate turns FSDP into DDP silently"
        )
    if kind == "FSDP":
        settings = {**defaults, **_without_prefix(section(config, "fsdp_config", path))}
        return _meshed(config, fsdp_engine(settings, base, findings), path, findings)
    if kind == "DEEPSPEED":
        return _deepspeed(config, base, path, findings)
    return _without_sharding(kind, base, findings)


def _without_sharding(kind: str, base: Engine, findings: Findings) -> Engine:
    if kind in ("MEGATRON_LM", "XLA", "TPU"):
        name = {"MEGATRON_LM": "Megatron-LM"}.get(kind, "PyTorch/XLA")
        findings.not_supported.append(f"{name} (distributed_type {kind}): use DDP, FSDP or DeepSpeed ZeRO")
        return replace(base, kind="other", name=name)
    if kind == "NO":
        if base.processes > 1:
            findings.watch_out.append(f"distributed_type NO starts one process, not {base.processes}")
        return replace(base, kind="single", name="one process", processes=1, machines=1)
    if kind == "MULTI_CPU":
        findings.watch_out.append(
            "accelerate starts the ranks of MULTI_CPU through MPI only, and one process without it; MULTI_GPU and the "
            "Trainer's --use_cpu need no MPI"
        )
    elif kind != "MULTI_GPU":
        findings.watch_out.append(f"not tested with gradscale: {kind.removeprefix('MULTI_')} devices")
    if base.processes == 1:
        findings.watch_out.append(f"distributed_type {kind} with num_processes 1: nothing is distributed")
    return base


def _deepspeed(config: Mapping[str, Any], base: Engine, path: str, findings: Findings) -> Engine:
    settings = section(config, "deepspeed_config", path)
    file = settings.get("deepspeed_config_file")
    stage = integer(settings.get("zero_stage", 2), "zero_stage", path, least=0)
    if file not in (None, "none"):
        clashing = [name for name in _EITHER_OR if name in settings]
        clashing += ["mixed_precision"] * (config.get("mixed_precision") is not None)
        if clashing:
            findings.not_supported.append(
                f"{path}: accelerate refuses {', '.join(clashing)} beside deepspeed_config_file: set them there"
            )
        option = f"{path}: deepspeed_config_file"
        # accelerate looks from the folder in which it is started, whatever the place of its own file.
        loaded = deepspeed_file(str(file), option)
        return deepspeed_engine(loaded, replace(base, origin=f"{path}, {file}"), findings, default_stage=stage)
    devices = {
        name: {"device": settings.get(f"{name}_device") or "none"} for name in ("offload_optimizer", "offload_param")
    }
    if devices["offload_optimizer"]["device"] == "cpu":
        findings.watch_out.append(
            "an accelerate configuration cannot hold zero_force_ds_cpu_optimizer: name a DeepSpeed JSON file as "
            "deepspeed_config_file"
        )
    made = {"zero_optimization": {"stage": stage, **devices}, "zero_allow_untested_optimizer": True}
    return deepspeed_engine(made, base, findings)


def _meshed(config: Mapping[str, Any], engine: Engine, path: str, findings: Findings) -> Engine:
    """Apply accelerate's `parallelism_config`: hybrid sharding, and dimensions beside data parallelism."""
    mesh = section(config, "parallelism_config", path)
    if not mesh:
        return engine
    prefix = "parallelism_config_"
    sizes = {
        name: integer(mesh.get(f"{prefix}{name}_size") or 1, f"{prefix}{name}_size", path)
        for name in ("dp_replicate", "dp_shard", "tp", "cp", "sp")
    }
    if engine.kind == "fsdp1":
        findings.not_supported.append("parallelism_config needs fsdp_version 2")
        return engine
    total = sizes["dp_replicate"] * sizes["dp_shard"] * sizes["tp"] * sizes["cp"] * sizes["sp"]
    words = " * ".join(f"{name}_size {size}" for name, size in sizes.items() if size > 1) or "all sizes 1"
    if total != engine.processes:
        findings.not_supported.append(
            f"parallelism_config makes {total} processes ({words}), num_processes is {engine.processes}"
        )
    shards = sizes["dp_shard"] * sizes["cp"]
    if shards == 1:
        findings.not_supported.append("parallelism_config leaves FSDP nothing to shard over: set dp_shard_size")
    if sizes["tp"] > 1:
        findings.watch_out.append(
            "tensor parallel through accelerate has not been tested; what it cuts is not shown here, so that memory is "
            "that of whole layers"
        )
    if sizes["cp"] > 1 or sizes["sp"] > 1:
        findings.watch_out.append("context and sequence parallel have not been tested")
    hybrid = sizes["dp_replicate"] > 1
    return replace(engine, shards=max(1, shards), name="FSDP2, hybrid (HSDP)" if hybrid else engine.name)


def _without_prefix(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).removeprefix("fsdp_"): value for key, value in settings.items() if value is not None}


def _launch_defaults(path: str, config: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """Check the keys against accelerate's own and return the defaults of `accelerate launch` for FSDP.

    accelerate refuses unknown keys of the file itself, and ignores those of its sections.
    """
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    if config.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        raise ConfigError(
            f"{path}: compute_environment={config['compute_environment']!r} is not supported: expected LOCAL_MACHINE"
        )
    known = {*ClusterConfig.__dataclass_fields__, "fp16", "dynamo_backend"}
    for key in config:
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key!r}{nearest(str(key), known)}; accelerate refuses it")
    options = {action.dest: action.default for action in launch_command_parser()._actions}
    mesh = [name for name in options if name.startswith("parallelism_config_")]
    decisive = {
        "fsdp_config": [f"fsdp_{key}" for key in DECISIVE],
        "parallelism_config": mesh,
        "deepspeed_config": list(options),
    }
    for name, matter in decisive.items():
        given = list(section(config, name, path))
        if name == "fsdp_config":  # where the prefix may be left out
            given = [f"fsdp_{str(key).removeprefix('fsdp_')}" for key in given]
        unknown = unknown_keys(given, mesh if name == "parallelism_config" else options, matter, f"{path}: {name}")
        if unknown:
            findings.watch_out.append(f"{path}: {name}: accelerate ignores {', '.join(unknown)}")
    fsdp = {key.removeprefix("fsdp_"): value for key, value in options.items() if key.startswith("fsdp_")}
    return {"version": 1, "use_orig_params": True, "sharding_strategy": "FULL_SHARD", **fsdp}
