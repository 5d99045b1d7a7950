"""Engines from DeepSpeed configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gradscale.doctor.engine import Engine
from gradscale.doctor.files import integer, read_mapping, section, unknown_keys
from gradscale.doctor.findings import Findings
from gradscale.integrations.deepspeed_config import unsupported_settings
from gradscale.training.errors import ConfigError

# Keys that change what is said here; DeepSpeed ignores a misspelled one of the first kind.
_KEYS = ("zero_optimization", "zero_force_ds_cpu_optimizer", "zero_allow_untested_optimizer", "optimizer", "bf16",
         "fp16", "torch_autocast", "data_types", "tensor_parallel", "expert_parallel")  # fmt: skip
_ZERO_KEYS = ("stage", "offload_optimizer", "offload_param", "sub_group_size", "zenflow", "round_robin_gradients",
              "cpu_offload", "cpu_offload_param", "zero_hpz_partition_size", "zero_quantized_weights",
              "zero_quantized_gradients", "zero_quantized_nontrainable_weights")  # fmt: skip
_UNTESTED = ("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients",
             "zero_quantized_nontrainable_weights", "parameter_alignment")  # fmt: skip
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def deepspeed_file(path: str, option: str) -> dict[str, Any]:
    """Return a DeepSpeed configuration from its file.

    Raises:
        ConfigError: the file is missing or malformed, or a key in it is misspelled.
    """
    config = read_mapping(path, option)
    unknown_keys(config, _KEYS, _KEYS, path)
    zero = config.get("zero_optimization")
    if isinstance(zero, Mapping):
        unknown_keys(zero, _ZERO_KEYS, _ZERO_KEYS, f"{path}: zero_optimization")
    return config


def deepspeed_engine(config: Mapping[str, Any], base: Engine, findings: Findings, *, default_stage: int = 2) -> Engine:
    """Return the engine that a DeepSpeed configuration makes of `base`.

    Args:
        config: the configuration, in which "auto" stands for what the Trainer or accelerate fills in.
        base: its origin, processes, machines and mixed precision count.
        findings: gets what is not supported.
        default_stage: accelerate's stage where the configuration says "auto".

    Raises:
        ConfigError: a value is none that DeepSpeed knows.
    """
    origin = base.origin
    if "zero_optimization" not in config:
        findings.not_supported.append(f'{origin}: accelerate and the Trainer need the section "zero_optimization"')
    zero = section(config, "zero_optimization", origin)
    stage = zero.get("stage", 0)
    stage = default_stage if stage == "auto" else integer(stage, "zero_optimization.stage", origin, least=0)
    if stage > 3:
        raise ConfigError(f"{origin}: zero_optimization.stage={stage} is not allowed: expected 0, 1, 2 or 3")
    findings.not_supported.extend(unsupported_settings(config))
    device = "cpu" if zero.get("cpu_offload") else _device(zero, "offload_optimizer", origin)
    offload = stage > 0 and device in ("cpu", "nvme")
    precision = _precision(config, base.mixed_precision, origin)
    _look_further(config, zero, precision, origin, findings)
    shown = {"offload_optimizer": device, "offload_param": _device(zero, "offload_param", origin)}
    return replace(
        base,
        kind="zero",
        name=f"DeepSpeed ZeRO {stage}" + (" (nothing is sharded)" if stage == 0 else ""),
        shards=base.processes if stage else 1,
        mixed_precision=precision,
        offload=offload,
        zero_stage=stage,
        master_dtype=_master_dtype(config, stage, precision, origin),
        sub_group_size=_sub_group_size(zero, origin),
        settings=shown,
    )


def _precision(config: Mapping[str, Any], given: str, origin: str) -> str:
    for name in _DTYPES:
        options = _precision_options(config, name, origin)
        # accelerate and the Trainer fill in "auto", and the section where there is none.
        enabled = options.get("enabled", False) if options else "auto"
        if enabled is True or (enabled == "auto" and given == name):
            return name
    return "fp8" if given == "fp8" else "no"


def _precision_options(config: Mapping[str, Any], name: str, origin: str) -> dict[str, Any]:
    old_name = "bfloat16" if name == "bf16" else name
    return section(config, name, origin) or section(config, old_name, origin)


def _master_dtype(config: Mapping[str, Any], stage: int, precision: str, origin: str) -> str | None:
    if stage == 0 and precision == "no":
        return None  # the optimizer has the parameters themselves
    if precision in _DTYPES:
        options = _precision_options(config, precision, origin)
        if options.get(f"{precision}_master_weights_and_grads"):
            return _DTYPES[precision]
    return "float32"


def _sub_group_size(zero: Mapping[str, Any], origin: str) -> int:
    size = zero.get("sub_group_size", 10**9)
    if isinstance(size, float):  # JSON's 1e9
        size = int(size)
    return 10**9 if size == "auto" else integer(size, "zero_optimization.sub_group_size", origin, least=0)


def _device(zero: Mapping[str, Any], name: str, origin: str) -> str:
    return str(section(zero, name, origin).get("device") or "none")


def _look_further(
    config: Mapping[str, Any], zero: Mapping[str, Any], precision: str, origin: str, findings: Findings
) -> None:
    """Find what `TrainingArguments` does not refuse and DeepSpeed would."""
    if precision in _DTYPES:
        masters, options = f"{precision}_master_weights_and_grads", _precision_options(config, precision, origin)
        if options.get(masters) and not options.get("bf16_optimizer_states"):
            findings.not_supported.append(
                f'"{masters}" without "bf16_optimizer_states" works with DeepSpeedCPUAdam only: remove it'
            )
    used = [name for name in _UNTESTED if zero.get(name) not in (None, False, 1)]
    if used:
        findings.watch_out.append(f"not tested with gradscale: {', '.join(used)}")
