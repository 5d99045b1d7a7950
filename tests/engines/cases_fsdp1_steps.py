"""What each rank does in `test_fsdp1_steps.py`: steps under FSDP1 out of the ordinary, and those that are refused."""

import gc
from datetime import timedelta
from unittest import mock

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import MixedPrecision
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from gradscale.sharding import fsdp1
from tests.engines.cases_fsdp1 import (
    UNITS,
    ZERO2,
    made,
    next_token_loss,
    optimizer_of,
    share,
    whole_state,
    whole_weights,
    wrapped,
)
from tests.engines.models_fsdp1 import filled, tiny
from tests.optim.training import batches, make_model


def everything(rank, world_size):
    gc.freeze()  # what is imported need not be searched each time that a model is made
    cases = (overflow, gradients_on_one_rank, wrong_offsets, refused)
    results = {(case.__name__, how): case(rank, world_size, how) for case in cases for how in (True, False)}
    return results | {case.__name__: case(rank, world_size) for case in (no_gradients, frozen_objects)}


def backward(model, rank, world_size):
    next_token_loss(model, share(next(iter(batches(1))), rank, world_size)).backward()


def clocks_of(optimizer):
    return [group["steps"] for group in optimizer.param_groups]


def overflow(rank, world_size, original):
    """float16 with a loss scale that is too large at first, and a loss that overflows on one rank later."""
    half = MixedPrecision(param_dtype=torch.float16, reduce_dtype=torch.float16)
    model, optimizer = made(original, wrapping={"mixed_precision": half, **UNITS})
    scaler = ShardedGradScaler(device="cpu", init_scale=2.0**20)
    results = []
    for index, batch in enumerate(batches(12)):
        before, scale = everything_of(model, optimizer), scaler.get_scale()
        loss = next_token_loss(model, share(batch, rank, world_size))
        scaler.scale(loss * float("inf") if (index, rank) == (7, 1) else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        results.append((scaler.get_scale() < scale, same(before, everything_of(model, optimizer))))
    return {"skipped and unchanged": results, "clocks": clocks_of(optimizer), "report": optimizer.grouping_report}


def everything_of(model, optimizer):
    """Weights, tensors of the state by (name, key), and param groups."""
    whole = whole_state(model, optimizer)
    tensors = {(name, key): value for name, state in whole["state"].items() for key, value in state.items()}
    return whole_weights(model) | tensors, whole["param_groups"]


def same(before, after):
    tensors, groups = before
    return (
        tensors.keys() == after[0].keys()
        and all(torch.equal(value, after[0][key]) for key, value in tensors.items())
        and groups == after[1]
    )


class Branch(nn.Module):
    """A unit of one number, which is on one rank, and another unit that no rank uses."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(1, 1, bias=False), nn.Linear(4, 4)

    def forward(self, numbers):
        return self.used(numbers[:, :1])


def impatient():
    """A process group that gives up early where ranks wait for each other in different calls."""
    return {"process_group": torch.distributed.new_group(timeout=timedelta(seconds=30))}


def gradients_on_one_rank(rank, world_size, original):
    """Steps in which this rank may see no gradient at all."""
    model, optimizer = made(original, make=lambda: filled(Branch()), wrapping={**impatient(), **UNITS})
    seen = []
    for _ in range(5):
        model(torch.ones(2, 4)).sum().backward()
        seen.append(any(param.grad is not None for param in model.parameters()))
        optimizer.step()
        optimizer.zero_grad()
    return {"seen": seen, "clocks": clocks_of(optimizer), "used": whole_weights(model)["used.weight"].item()}


def no_gradients(rank, world_size):
    """A call of `step()` before any backward(); of this model, the last of three ranks has nothing."""
    model, optimizer = made(True, make=tiny, wrapping=impatient())
    before = whole_weights(model)["weight"]
    optimizer.step()
    return clocks_of(optimizer), torch.equal(whole_weights(model)["weight"], before)


def frozen_objects(rank, world_size):
    """`gc.freeze` hides the objects by which FSDP1's parameters are found."""
    model = wrapped(make_model(), True, **UNITS)
    gc.collect()
    gc.freeze()
    optimizer = optimizer_of(model)
    backward(model, rank, world_size)
    optimizer.step()
    return clocks_of(optimizer), gc.get_freeze_count() > 0


def error_of(attempt):
    try:
        attempt()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def wrong_offsets(rank, world_size, original):
    """Rank 1 takes its parts of layers for other ones than they are."""
    model, optimizer = made(original, wrapping=UNITS)
    right = fsdp1._segment

    def shifted(name, shape, place, start, groups):
        if place.in_shard:
            place = place._replace(intra_param_start_idx=place.intra_param_start_idx + 1)
        return right(name, shape, place, start, groups)

    backward(model, rank, world_size)
    before = whole_weights(model)
    with mock.patch.object(fsdp1, "_segment", shifted if rank == 1 else right):
        error = error_of(optimizer.step)
    after = whole_weights(model)
    unchanged = all(torch.equal(value, after[name]) for name, value in before.items())
    return error, unchanged, len(optimizer.state), clocks_of(optimizer)


def refused(rank, world_size, original):
    """By what is done: the error, and the clock after it."""
    results = {}
    for name, wrapping in (("summoned", UNITS), ("summoned, SHARD_GRAD_OP", {**ZERO2, **UNITS})):
        model, optimizer = made(original, wrapping=wrapping)
        backward(model, rank, world_size)
        with FSDP.summon_full_params(model, with_grads=original):
            first = error_of(optimizer.step)
        optimizer.step()
        with FSDP.summon_full_params(model, with_grads=original):
            results[name] = first, error_of(optimizer.step), clocks_of(optimizer)
    model, optimizer = made(original, wrapping=UNITS)
    with model.no_sync():
        backward(model, rank, world_size)
    results["not synchronized"] = error_of(optimizer.step), len(optimizer.state), clocks_of(optimizer)
    if not original:
        model, optimizer = made(original, wrapping=UNITS, before=True)
        backward(model, rank, world_size)
        results["made before"] = error_of(optimizer.step), len(optimizer.state), clocks_of(optimizer)
        model = wrapped(make_model(), original, **UNITS)
        results["target"] = error_of(lambda: optimizer_of(model, options={"target_modules": ["1"]}))
    return results


def tensor_parallel(rank, world_size):
    """FSDP1 over tensor parallel: what it flattens are parts of layers."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = filled(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    model = parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    model = wrapped(model, True, device_mesh=mesh["data"])
    optimizer = optimizer_of(model)
    model(torch.ones(3, 8)).sum().backward()
    return error_of(optimizer.step), len(optimizer.state)
