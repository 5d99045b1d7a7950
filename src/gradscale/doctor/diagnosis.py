"""All that the doctor says, as plain data: what `--json` prints and the text is made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from gradscale.adapter.named.base import NamedAdapter
from gradscale.adapter.sgg import SGG
from gradscale.doctor.adapter_memory import memory_of_adapter
from gradscale.doctor.detect import detect_engine
from gradscale.doctor.engine import Engine
from gradscale.doctor.environment import registration, versions
from gradscale.doctor.findings import Findings
from gradscale.doctor.memory import COUNTS, groups_layers, memory_of, sent_bytes, sent_for_ratios
from gradscale.doctor.placement import place, state_dtype
from gradscale.doctor.plan import Plan, check_arguments, make_plan, trainer_arguments
from gradscale.optim.placement import refuse_sharded
from gradscale.optim.sgg_scaler import interval_in_steps
from gradscale.options import DEFERRED
from gradscale.registry import get_entry
from gradscale.sharding.view import TensorView, UnsupportedShardingError
from gradscale.training.errors import ConfigError


@dataclass(frozen=True)
class Question:
    """What the command asks about; see its help."""

    model: str | None = None
    dtype: str = "auto"
    accelerate_config: str | None = None
    fsdp_config: str | None = None
    deepspeed: str | None = None
    num_processes: int | None = None
    mixed_precision: str | None = None
    optim: str = "sgg_adamw"
    optim_args: str | None = None
    optim_target_modules: str | list[str] | None = None
    max_steps: int = -1
    lora_r: int | None = None
    lora_target_modules: list[str] | None = None
    peft_config: str | None = None


def diagnose(question: Question) -> dict[str, Any]:
    """Return versions, registration, engine, and what would become of the model's parameters.

    Raises:
        ConfigError: an option is wrong, or a file is missing or malformed.
    """
    try:
        entry = get_entry(question.optim)
    except ValueError as error:
        raise ConfigError(f"--optim: {error}") from None
    arguments = trainer_arguments(
        optim=entry.name,
        optim_args=question.optim_args,
        target_modules=question.optim_target_modules,
        max_steps=question.max_steps,
    )
    check_arguments(arguments)
    findings = Findings()
    asked = question.model or question.accelerate_config or question.fsdp_config or question.deepspeed
    engine = detect_engine(
        accelerate_config=question.accelerate_config,
        fsdp_config=question.fsdp_config,
        deepspeed=question.deepspeed,
        num_processes=question.num_processes,
        mixed_precision=question.mixed_precision,
        findings=findings,
    )
    report: dict[str, Any] = {"versions": versions(findings), "registration": registration(findings)}
    if asked or question.num_processes:
        report["engine"] = {**asdict(engine), "copies": engine.copies}
    if question.model is not None:
        from gradscale.doctor.model import add_adapters, build_model

        model = add_adapters(
            build_model(question.model, question.dtype),
            lora_r=question.lora_r,
            lora_target_modules=question.lora_target_modules,
            peft_config=question.peft_config,
        )
        plan = make_plan(model, entry, arguments)
        _check_model(model, plan, engine, question, findings)
        report |= _of_model(model, plan, engine, question, findings)
    return {**report, **asdict(findings), "would_run": not findings.not_supported}


def _of_model(model: nn.Module, plan: Plan, engine: Engine, question: Question, findings: Findings) -> dict[str, Any]:
    placement = place(plan, engine, model, findings)
    trained = [planned for planned in plan.parameters if planned.member is not None]
    scaled = plan.scaled
    base: Any = getattr(model, "get_base_model", None)  # PEFT's
    report: dict[str, Any] = {
        "model": {
            "class": type(base() if base else model).__name__,
            "adapters": base is not None,
            "parameters": sum(planned.param.numel() for planned in plan.parameters),
            "trainable": sum(planned.param.numel() for planned in trained),
            "dtypes": _words({str(planned.param.dtype).removeprefix("torch.") for planned in plan.parameters}),
        },
        "parameters": [
            {
                "name": planned.name,
                "also": list(planned.also),
                "shape": list(planned.param.shape),
                "dtype": str(planned.param.dtype).removeprefix("torch."),
                "trainable": planned.member is not None,
                "sharding": "unknown" if engine.kind == "other" else placement.words.get(planned.name, "unknown"),
                "ranks": placement.ranks.get(planned.name),
                "scaled": planned.unscaled is None,
                "why_not": planned.unscaled,
            }
            for planned in plan.parameters
        ],
        "optimizer": _of_optimizer(plan, question, findings),
    }
    report["optimizer"]["scaled_layers"] = len(scaled)
    report["optimizer"]["scaled_elements"] = sum(planned.param.numel() for planned in scaled)
    if engine.kind != "other" and not _cannot_step_vectors(plan, engine):
        optimizer, members = plan.optimizer, placement.members
        memory = memory_of_adapter(optimizer, members) if isinstance(optimizer, SGG) else memory_of(optimizer, members)
        dtypes = {str(state_dtype(planned.param, engine)).removeprefix("torch.") for planned in trained}
        sent, traffic = sent_bytes(plan.optimizer, placement.members, engine)
        report["memory"] = {
            **asdict(memory),
            "state": memory.state,
            "where": "host" if engine.offload else "device",
            "stepped_in": _words(dtypes),
        }
        counts = COUNTS if groups_layers(plan.optimizer) else None
        report["sent"] = {
            "counts_per_layer": counts,
            "all_reduce": sent,
            "ring_traffic_per_rank": traffic,
            "in_each_step": sent_for_ratios(plan.optimizer, placement.members, engine),
        }
    return report


def _cannot_step_vectors(plan: Plan, engine: Engine) -> bool:
    return isinstance(plan.optimizer, NamedAdapter) and (engine.kind == "fsdp1" or bool(engine.zero_stage))


def _of_optimizer(plan: Plan, question: Question, findings: Findings) -> dict[str, Any]:
    group: Any = plan.options
    found: dict[str, Any] = {
        "name": question.optim,
        "class": type(plan.optimizer).__name__,
        "options": {name: value for name, value in group.items() if name != "total_steps"},
        "interval": None,
        "groupings": None,
    }
    groups = groups_layers(plan.optimizer)
    if groups and not (group["total_steps"] == DEFERRED and group["recluster_interval"] < 1):
        found["interval"] = interval_in_steps(group)
    if not plan.scaled:
        findings.watch_out.append("no layer is scaled: this is the plain base optimizer")
    elif groups and question.max_steps > 0:
        found["groupings"] = question.max_steps // found["interval"]
        if not found["groupings"]:
            findings.watch_out.append(
                f"recluster_interval={found['interval']} is more than the {question.max_steps} steps of the run: no "
                "layer is ever grouped, and this is the plain base optimizer"
            )
    return found


def _check_model(model: nn.Module, plan: Plan, engine: Engine, question: Question, findings: Findings) -> None:
    refused = findings.not_supported
    if not any(planned.member for planned in plan.parameters):
        refused.append("no parameter of the model is trained")
    sparse = [name for name, module in model.named_modules() if getattr(module, "sparse", False) is True]
    if sparse:
        refused.append(f"sparse gradients: {', '.join(sparse)}")
    if isinstance(plan.optimizer, NamedAdapter):
        base, cuts_layers = type(plan.optimizer.base_optimizer).__name__, engine.kind == "fsdp2"
        if _cannot_step_vectors(plan, engine):
            refused.append(
                f"{question.optim} steps layers that are whole ({base}'s update of an element depends on others of its "
                f"layer), and this engine lays several into one vector: use DDP, or sgg_adamw"
            )
        elif cuts_layers and not plan.optimizer.takes_shards:
            refused.append(
                f"{base} cannot step a layer of which FSDP2 leaves a part on each rank: use DDP, or sgg_adamw"
            )
    if engine.kind in ("fsdp1", "fsdp2") or engine.zero_stage:
        device = torch.device("cpu" if engine.offload else "cuda")
        for planned in plan.scaled[:1]:
            assert planned.member is not None
            try:
                refuse_sharded(TensorView(planned.member.scaled, flat=True), device, planned.member.group)
            except UnsupportedShardingError as error:
                refused.append(str(error))
    if engine.flat_params and question.optim_target_modules is not None:
        refused.append(
            "--optim_target_modules with FSDP1's use_orig_params=false, which hides the layers: set it to true"
        )
    halves = any(planned.member and str(planned.param.dtype) == "torch.float16" for planned in plan.parameters)
    if engine.mixed_precision == "fp16" and halves and engine.kind in ("single", "ddp"):
        refused.append("mixed precision fp16 needs weights in float32: torch refuses to unscale gradients in float16")


def _words(names: set[str]) -> str:
    return " and ".join(sorted(names))
