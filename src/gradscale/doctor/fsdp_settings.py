"""Engines from FSDP settings: the `fsdp_config` of accelerate and of the Trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from gradscale.doctor.engine import Engine, Wrapping
from gradscale.doctor.files import integer, read_mapping, truth, unknown_keys
from gradscale.doctor.findings import Findings
from gradscale.training.errors import ConfigError

_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")
_POLICIES = ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")
# Keys, without the prefix `fsdp_`, on which what is said here depends.
DECISIVE = ("version", "offload_params", "cpu_offload", "auto_wrap_policy", "min_num_params", "sharding_strategy",
            "transformer_layer_cls_to_wrap", "state_dict_type", "use_orig_params", "ignored_modules")  # fmt: skip
_TRAINER_KEYS = (*DECISIVE, "reshard_after_forward", "cpu_ram_efficient_loading", "activation_checkpointing",
                 "activation_checkpointing_offload", "forward_prefetch", "backward_prefetch", "sync_module_states",
                 "limit_all_gathers", "xla", "xla_fsdp_v2", "xla_fsdp_settings", "xla_fsdp_grad_ckpt")  # fmt: skip


def fsdp_engine(settings: Mapping[str, Any], base: Engine, findings: Findings) -> Engine:
    """Return the engine that FSDP settings make of `base`.

    Args:
        settings: keys without the prefix `fsdp_`, every one of them with the default of where they stand.
        base: its origin, processes, machines and mixed precision count.
        findings: gets what is not supported.

    Raises:
        ConfigError: a value is none that FSDP knows.
    """
    origin = base.origin
    version = integer(settings["version"], "fsdp_version", origin)
    if version not in (1, 2):
        raise ConfigError(f"{origin}: fsdp_version={version} is not allowed: expected 1 or 2")
    states = str(settings.get("state_dict_type") or ("FULL_STATE_DICT" if version == 1 else "SHARDED_STATE_DICT"))
    offload = truth(settings.get("offload_params") or False, "fsdp_offload_params", origin)
    wrapping = _wrapping(settings, origin)
    shown = {"state_dict_type": states, "wrapping": wrapping.policy, "offload to the host": offload}
    if states.upper() == "LOCAL_STATE_DICT":
        findings.not_supported.append(
            "checkpoints with LOCAL_STATE_DICT: use SHARDED_STATE_DICT or FULL_STATE_DICT for fsdp_state_dict_type"
        )
    if settings.get("ignored_modules"):
        findings.watch_out.append(
            f"ignored_modules={settings['ignored_modules']!r} stay whole on every rank; here they count as sharded"
        )
    engine = replace(base, shards=base.processes, offload=offload, wrapping=wrapping, settings=shown)
    if version == 2:
        return replace(engine, kind="fsdp2", name="FSDP2")
    return _fsdp1(settings, engine, findings)


def _fsdp1(settings: Mapping[str, Any], engine: Engine, findings: Findings) -> Engine:
    origin = engine.origin
    original = truth(settings["use_orig_params"], "fsdp_use_orig_params", origin)
    strategy = _strategy(settings["sharding_strategy"], origin)
    shards = engine.processes
    if strategy == "NO_SHARD":
        shards = 1
    elif strategy.startswith("HYBRID"):
        shards = engine.processes // engine.machines
    if not original:
        findings.watch_out.append(
            "FSDP1 with use_orig_params=false hides the parameters' names: the Trainer then decays biases and norms too"
        )
    shown = {**engine.settings, "sharding_strategy": strategy, "use_orig_params": original}
    return replace(engine, kind="fsdp1", name="FSDP1", shards=shards, flat_params=not original, settings=shown)


def trainer_fsdp_engine(path: str, base: Engine, findings: Findings) -> Engine:
    """Return the engine of the JSON file of `--fsdp_config`, for `--fsdp`.

    Raises:
        ConfigError: the file is missing or malformed, or a key or a value in it is wrong.
    """
    given = {key.removeprefix("fsdp_"): value for key, value in read_mapping(path, "--fsdp_config").items()}
    unknown = unknown_keys(given, _TRAINER_KEYS, DECISIVE, path)
    if unknown:
        findings.watch_out.append(f"{path}: transformers ignores {', '.join(unknown)}")
    if given.get("xla"):
        findings.not_supported.append("FSDP by PyTorch/XLA (xla: true in fsdp_config)")
        return replace(base, kind="other", name="FSDP by PyTorch/XLA")
    asked = str(given.get("reshard_after_forward", "full_shard")).upper()
    defaults = {"use_orig_params": True, "auto_wrap_policy": _POLICIES[0], "state_dict_type": "FULL_STATE_DICT"}
    settings = {"version": _default_version(), **defaults, **given, "sharding_strategy": "FULL_SHARD"}
    settings["offload_params"] = given.get("cpu_offload", False)  # the Trainer's name for it
    engine = fsdp_engine(settings, base, findings)
    if engine.kind == "fsdp1" and asked in _STRATEGIES and asked != "FULL_SHARD":
        findings.watch_out.append(
            f"accelerate shards fully, whatever reshard_after_forward says ({asked.lower()}), unless the environment "
            "variable FSDP_SHARDING_STRATEGY names another strategy"
        )
    return engine


def _default_version() -> int:
    """The version that this transformers takes where none is named."""
    from transformers import TrainingArguments

    arguments = SimpleNamespace(fsdp=True, fsdp_config={}, activation_checkpointing=False, gradient_checkpointing=False)
    environment = dict(os.environ)
    try:
        settings = TrainingArguments._process_fsdp_args(arguments)
    except AttributeError:  # transformers 4 did without that function
        return 1
    finally:
        os.environ.clear()
        os.environ.update(environment)
    return int((settings or {}).get("fsdp_version", 1))


def _strategy(value: Any, origin: str) -> str:
    text = str(value).upper()
    if text.isdigit() and 1 <= int(text) <= len(_STRATEGIES):
        return _STRATEGIES[int(text) - 1]
    if text not in _STRATEGIES:
        raise ConfigError(
            f"{origin}: fsdp_sharding_strategy={value!r} is not allowed: expected one of {', '.join(_STRATEGIES)}"
        )
    return text


def _wrapping(settings: Mapping[str, Any], origin: str) -> Wrapping:
    policy = str(settings.get("auto_wrap_policy") or "NO_WRAP").upper()
    if policy not in _POLICIES:
        raise ConfigError(
            f"{origin}: fsdp_auto_wrap_policy={settings['auto_wrap_policy']!r} is not allowed: expected one of "
            f"{', '.join(_POLICIES)}"
        )
    names = settings.get("transformer_layer_cls_to_wrap")
    classes = names.split(",") if isinstance(names, str) else names
    least = integer(settings.get("min_num_params") or 0, "fsdp_min_num_params", origin, least=0)
    if policy == "SIZE_BASED_WRAP" and least == 0:
        policy = "NO_WRAP"
    return Wrapping(policy, None if not classes else tuple(str(name).strip() for name in classes), least)
