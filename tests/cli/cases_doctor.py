"""State of real engines as one of several ranks sees it, for `test_doctor.py`.

The ranks are pretended: torch's fake process group answers for the others, so that one process is enough to see what
FSDP and DeepSpeed make of a model. Nothing is trained: what is right is the shape of the state, not its values.
"""

import logging
import os
import warnings
from functools import partial

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from peft.utils.other import fsdp_auto_wrap_policy
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, size_based_auto_wrap_policy
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM, Trainer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from gradscale import SGGAdamW
from gradscale.optim import step_loop

RANKS = 4
BF16 = {"bf16": {"enabled": True}}


def model_of(file):
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(file), dtype=torch.float32)


def adapted_model_of(file):
    return get_peft_model(model_of(file), LoraConfig(r=3))


def optimizer_of(model):
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    groups = [[params[name] for name in params if (name in decayed) is wanted] for wanted in (True, False)]
    return SGGAdamW([{"params": group} for group in groups if group], recluster_interval=1000, module=model)


def local_bytes(optimizer):
    """Bytes of state on this rank by key."""
    found = {}
    for state in optimizer.state.values():
        for key, value in state.items():
            local = value.to_local() if hasattr(value, "to_local") else value
            found[key] = found.get(key, 0) + local.numel() * local.element_size()
    return found


def after_a_step(optimizer):
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.numel() or hasattr(param, "to_local"):
                param.grad = torch.zeros_like(param)
    optimizer.step()
    return local_bytes(optimizer)


def fsdp2(file):
    model = model_of(file)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    return after_a_step(optimizer_of(model))


def fsdp1(model, original, policy):
    model = FSDP(model, use_orig_params=original, auto_wrap_policy=policy, device_id=torch.device("cpu"))
    return after_a_step(optimizer_of(model))


def fsdp1_cases(file):
    """Every kind of units, with and without the parameters' own names, on the rank that has most."""
    by_class, by_size = ModuleWrapPolicy({LlamaDecoderLayer}), partial(size_based_auto_wrap_policy, min_num_params=200)
    cases = {
        "fsdp1": (model_of, True, lambda model: by_class),
        "fsdp1 flat": (model_of, False, lambda model: by_class),
        "fsdp1 by size": (model_of, True, lambda model: by_size),
        "fsdp1 one unit": (model_of, False, lambda model: None),
        "fsdp1 lora": (adapted_model_of, False, fsdp_auto_wrap_policy),
    }
    found = {}
    for name, (make, original, policy) in cases.items():
        every = []
        for rank in range(RANKS):
            model = make(file)
            every.append(on_rank(rank, fsdp1, model, original, policy(model)))
        found[name] = max(every, key=lambda state: state["exp_avg"])
    return found


def zero(file, stage, more=None, **settings):
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    model = model_of(file)
    optimizer = optimizer_of(model)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, **settings},
        "zero_allow_untested_optimizer": True,
        **(more or {}),
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    engine.step()
    return local_bytes(optimizer)


def on_rank(rank, function, *args, **kwargs):
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
    try:
        return function(*args, **kwargs)
    finally:
        dist.destroy_process_group()


def every_engine(rank, world_size, file):
    """State by engine, on the rank that has most. In a process of its own: the group is another one afterwards."""
    warnings.simplefilter("ignore")
    os.environ.update(WORLD_SIZE=str(RANKS), DS_ACCELERATOR="cpu", DEEPSPEED_LOG_LEVEL="error")
    # It sums over all ranks, and the pretended ones have nothing.
    step_loop.check_coverage = lambda views: None
    dist.destroy_process_group()
    found = {"fsdp2": on_rank(0, fsdp2, file), **fsdp1_cases(file)}
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    for stage in (0, 1, 2, 3):
        found[f"zero{stage}"] = zero(file, stage)
    found["zero3 small"] = zero(file, 3, sub_group_size=100)
    found["zero0 bf16"] = zero(file, 0, BF16)
    found["zero1 bf16"] = zero(file, 1, {**BF16, "data_types": {"grad_accum_dtype": "fp32"}})
    return found
