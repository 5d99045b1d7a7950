"""Settings of a DeepSpeed configuration with which one of our optimizers would not be used, or not be right.

Standard library only: read when `TrainingArguments` is built, and by `gradscale doctor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def unsupported_settings(config: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a DeepSpeed configuration, one sentence each; nothing if it is fine.

    Args:
        config: the configuration as a mapping.
    """
    found = []
    if config.get("optimizer"):
        found.append('"optimizer" is set, which DeepSpeed uses instead of --optim: remove that section')
    zero = _section(config, "zero_optimization")
    offload = _section(zero, "offload_optimizer")
    device = offload.get("device") or "none"
    if zero.get("cpu_offload") and device == "none":
        device = "cpu"  # its old name
    if device == "nvme":
        found.append('"offload_optimizer" to "nvme" is not supported: use "cpu"')
    elif device != "none" and config.get("zero_force_ds_cpu_optimizer", True) is not False:
        found.append(
            '"offload_optimizer" needs "zero_force_ds_cpu_optimizer": false; otherwise DeepSpeedCPUAdam would take the '
            "optimizer's place"
        )
    if offload.get("super_offload"):
        found.append('"super_offload" steps with a CPU Adam of its own instead of --optim: remove it')
    if offload.get("ratio", 1.0) != 1.0:
        found.append(f'"offload_optimizer" with "ratio": {offload["ratio"]} steps a part with torch\'s AdamW: use 1.0')
    if _section(zero, "offload_param").get("device") == "nvme":
        found.append('"offload_param" to "nvme" is not supported: use "cpu"')
    if zero.get("zenflow"):
        found.append('"zenflow" is not supported: remove that section')
    autocast = _section(config, "torch_autocast")
    if autocast.get("enabled") and str(autocast.get("dtype")).removeprefix("torch.") in ("float16", "fp16", "half"):
        found.append('"torch_autocast" with float16 steps parameters one without the other: use bfloat16, or "fp16"')
    for name, key in (("tensor_parallel", "autotp_size"), ("expert_parallel", "autoep_size")):
        size = _section(config, name).get(key)
        if isinstance(size, int) and size > 1:
            found.append(f'"{name}" with "{key}": {size} puts parts of layers where whole ones are expected: remove it')
    return found


def sharding_into_vectors(config: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a DeepSpeed configuration for an optimizer that steps whole layers.

    Args:
        config: the configuration as a mapping.
    """
    stage = _section(config, "zero_optimization").get("stage", 0)
    if not isinstance(stage, int) or stage < 1:
        return []
    return [
        f'"zero_optimization" with "stage": {stage} lays several layers into one vector, and this optimizer steps '
        "layers that are whole: use DDP, or sgg_adamw"
    ]


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}
