"""What each rank does in `test_fsdp1.py`: torch's FSDP1 in plain loops, and its checkpoints."""

import functools

import torch
from torch import nn
from torch.distributed.fsdp import FullStateDictConfig, ShardingStrategy, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from gradscale import SGGAdamW
from tests.optim.training import batches, make_model

OPTIONS = {"lr": 1e-2, "recluster_interval": 4, "scale_decay": 0.5, "weight_decay": 0.1}
STEPS = 20

WRAPPINGS = {
    "units": {"auto_wrap_policy": ModuleWrapPolicy({nn.Linear})},
    "one unit": {},
    "no shard": {"sharding_strategy": ShardingStrategy.NO_SHARD},
    "shard grad op": {"sharding_strategy": ShardingStrategy.SHARD_GRAD_OP},
}


def next_token_loss(model, batch):
    logits = model(batch[:, :-1]).float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def wrapped(original, make=make_model, **wrapping):
    return FSDP(make(), use_orig_params=original, device_id=torch.device("cpu"), **wrapping)


def train(model, optimizer, rank, world_size, start=0, stop=STEPS):
    losses = []
    for batch in batches(stop, start=start):
        loss = next_token_loss(model, batch.chunk(world_size)[rank])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.distributed.all_reduce(loss)
        losses.append(loss.item() / world_size)
    return losses


def run(original, rank, world_size, **wrapping):
    model = wrapped(original, **wrapping)
    optimizer = SGGAdamW(model.parameters(), **OPTIONS, module=model)
    losses = train(model, optimizer, rank, world_size)
    with FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT, FullStateDictConfig(rank0_only=False)):
        state = FSDP.optim_state_dict(model, optimizer)
    return {"losses": losses, "report": optimizer.grouping_report, "state": state}


def everything(rank, world_size):
    return {
        (name, original): run(original, rank, world_size, **wrapping)
        for name, wrapping in WRAPPINGS.items()
        for original in (True, False)
    }
