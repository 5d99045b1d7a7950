"""What each rank does in `test_deepspeed.py`: plain DeepSpeed loops, every kind of ZeRO in one launch."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")

import contextlib
import copy
import io
import logging
import warnings

import torch
from torch import nn

from gradscale import SGGAdamW
from gradscale.optim.rule import Layer
from gradscale.optim.sgg_scaler import SGGScaler
from tests.optim.training import batches, make_model

OPTIONS = {"lr": 1e-2, "recluster_interval": 4, "scale_decay": 0.5, "weight_decay": 0.1}
STEPS = 20
ROWS = 6  # of each batch

ZERO = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero2 round robin": {"stage": 2, "round_robin_gradients": True},
    "zero2 offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero3": {"stage": 3},
    "zero3 small sub-groups": {"stage": 3, "sub_group_size": 300},
    "zero3 offload": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "sub_group_size": 300},
}


def deepspeed_module():
    """DeepSpeed, without compiling operators that nothing here needs, and without its chatter."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def config(zero, accumulate=1, **more):
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulate,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **more,
    }


def groups_of(model):
    """Matrices in two groups and vectors in a third, as trainers make them."""
    matrices = [param for param in model.parameters() if param.requires_grad and param.dim() > 1]
    vectors = [param for param in model.parameters() if param.requires_grad and param.dim() <= 1]
    groups = [{"params": matrices[:1]}, {"params": matrices[1:]}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def next_token_loss(model, batch):
    logits = model(batch[:, :-1]).float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def full(param, key):
    """A parameter ("fp32") or its state as a whole tensor, put together by DeepSpeed's own functions."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    return safe_get_full_fp32_param(param) if key == "fp32" else safe_get_full_optimizer_state(param, key)


def run(zero, rank, world_size, make=make_model, accumulate=1, steps=STEPS, **more):
    deepspeed = deepspeed_module()
    context = deepspeed.zero.Init(config_dict_or_path=config(zero)) if more.pop("init", False) else contextlib.nullcontext()
    with context:
        model = make()
    optimizer = SGGAdamW(groups_of(model), **OPTIONS, module=model)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config(zero, accumulate, **more))
    losses, states = [], []
    for batch in batches(steps * accumulate):
        loss = next_token_loss(engine, batch.chunk(world_size)[rank])
        engine.backward(loss)
        engine.step()
        torch.distributed.all_reduce(loss)
        losses.append(loss.item() / world_size)
    names = [layer.name for layer in optimizer.grouping_report.layers]
    params = dict(model.named_parameters())
    state = {name: {key: full(params[name], key) for key in ("fp32", "exp_avg", "labels")} for name in names}
    return {"losses": losses, "report": optimizer.grouping_report, "state": state, "kind": type(engine.optimizer).__name__}


def single(steps=STEPS):
    model = make_model()
    optimizer = SGGAdamW(groups_of(model), **OPTIONS, module=model)
    losses = []
    for batch in batches(steps):
        loss = next_token_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, "report": optimizer.grouping_report}


def everything(rank, world_size):
    return {name: run(copy.deepcopy(zero), rank, world_size) for name, zero in ZERO.items()}
