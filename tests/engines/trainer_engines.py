"""The Trainer's engines: how each is asked for, what is really running, and its weights and optimizer state."""

import contextlib
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from tests.engines.fsdp_on_cpu import relabel_cpu_ranks

# engine: distributed type, class of the wrapped model, class of what accelerate wraps as the optimizer
KINDS = {
    "single": ("NO", "LlamaForCausalLM", "SGGAdamW"),
    "ddp": ("MULTI_CPU", "DistributedDataParallel", "SGGAdamW"),
    "fsdp1": ("FSDP", "FullyShardedDataParallel", "SGGAdamW"),
    "fsdp1 flat": ("FSDP", "FullyShardedDataParallel", "SGGAdamW"),
    "fsdp2": ("FSDP", "FSDPLlamaForCausalLM", "SGGAdamW"),
    "zero1": ("DEEPSPEED", "DeepSpeedEngine", "DeepSpeedZeroOptimizer"),
    "zero2": ("DEEPSPEED", "DeepSpeedEngine", "DeepSpeedZeroOptimizer"),
    "zero3": ("DEEPSPEED", "DeepSpeedEngine", "DeepSpeedZeroOptimizer_Stage3"),
    "zero3 offload": ("DEEPSPEED", "DeepSpeedEngine", "DeepSpeedZeroOptimizer_Stage3"),
}


def arguments(engine, states):
    """`TrainingArguments` that ask for an engine."""
    if engine.startswith("fsdp"):
        relabel_cpu_ranks()
        config = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"], "state_dict_type": states}
        config["version"] = 2 if engine == "fsdp2" else 1
        if engine != "fsdp2":
            config |= {
                "use_orig_params": engine == "fsdp1",
                "sync_module_states": False,
                "cpu_ram_efficient_loading": False,
            }
        return {"fsdp": True, "fsdp_config": config}
    if engine.startswith("zero"):
        import deepspeed

        deepspeed.ops.__compatible_ops__ = {}  # compiles none of its operators
        # Whether this CPU is fast in float16 is of no interest here.
        deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
        offload = {"offload_optimizer": {"device": "cpu"}} if "offload" in engine else {}
        automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        return {
            "deepspeed": {
                **dict.fromkeys(automatic, "auto"),
                "zero_optimization": {"stage": int(engine[4]), **offload},
                "zero_force_ds_cpu_optimizer": False,
            }
        }
    return {}


def kind(trainer):
    """What is really running; see `KINDS`."""
    model = trainer.model_wrapped
    if isinstance(model, FullyShardedDataParallel):
        handles = [unit._handle for unit in model.fsdp_modules(model) if unit._handle is not None]
        assert all(handle.uses_sharded_strategy or handle.world_size == 1 for handle in handles)
    sharded = [isinstance(param, DTensor) for param in model.parameters()]
    assert all(sharded) if type(model).__name__.startswith("FSDP") else not any(sharded)
    return (
        trainer.accelerator.distributed_type.value,
        type(model).__name__,
        type(trainer.optimizer.optimizer).__name__,
    )


def innermost(optimizer):
    """The optimizer inside the wrappers of accelerate and DeepSpeed."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def weights(trainer):
    """Whole parameters by name, on every rank."""
    model, whole = trainer.model_wrapped, {}
    fsdp1 = isinstance(model, FullyShardedDataParallel)
    context = FullyShardedDataParallel.summon_full_params(model) if fsdp1 else contextlib.nullcontext()
    with context:
        for name, param in model.named_parameters():
            if isinstance(param, DTensor):
                param = param.full_tensor()
            elif hasattr(param, "ds_id"):
                from deepspeed.utils import safe_get_full_fp32_param

                param = safe_get_full_fp32_param(param) if param.requires_grad else param.ds_tensor
            if "_flat_param" not in name:
                whole[name.replace("_fsdp_wrapped_module.", "").removeprefix("module.")] = param.detach().clone()
        if fsdp1 and not whole:
            whole = {name: value.clone() for name, value in flattened(model)}
    return whole


def flattened(model):
    """The original parameters of FSDP1 units that hide them, while these are whole."""
    for unit_name, unit in model.named_modules():
        if isinstance(unit, FullyShardedDataParallel) and unit._handle is not None:
            flat = unit._handle.flat_param
            for name, view in zip(flat._fqns, unit._handle._get_unflat_views(flat), strict=True):
                prefix = unit_name.replace("_fsdp_wrapped_module.", "").replace("_fsdp_wrapped_module", "")
                yield f"{prefix}.{name}".removeprefix("."), view


def state(optimizer):
    """State of every tensor as it stands on this rank (whole if a DTensor), in the order of the param groups."""
    # ZeRO 3 leaves the groups empty between steps, and makes and loads the state in their order.
    params = [param for group in optimizer.param_groups for param in group["params"]] or list(optimizer.state)
    return [
        {
            key: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
            for key, value in (entry or {}).items()  # torch makes none where nothing is here
        }
        for entry in map(optimizer.state.get, params)
    ]


def same(tensors, others):
    """Bit for bit."""
    return tensors.keys() == others.keys() and all(
        tensors[key].dtype == others[key].dtype and torch.equal(tensors[key], others[key]) for key in others
    )
