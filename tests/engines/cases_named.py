"""What each rank does in `test_named.py`: bases of other libraries, by name, on the shards of FSDP2."""

import gc

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.adapter.named_bases import OPTIONS, Model, named
from tests.engines.loops_zero import refusal

STEPS = 6
SGG = {"recluster_interval": 2, "scale_decay": 0.5, "global_mda": "clusters"}


def train(name, mesh=None):
    """Step with given gradients.

    Returns:
        Weights before and after, whole; and scales of the last grouping by layer.
    """
    model = Model()
    start = {key: param.detach().clone() for key, param in model.named_parameters()}
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    optimizer = named(name, model, **SGG)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        for param in model.parameters():
            grad = torch.randn(param.shape, generator=generator) + 0.5
            if isinstance(param, DTensor):
                grad = distribute_tensor(grad, param.device_mesh, param.placements, src_data_rank=None)
            param.grad = grad
        optimizer.step()
    found = {
        key: (param.full_tensor() if isinstance(param, DTensor) else param).detach()
        for key, param in model.named_parameters()
    }
    return {
        "start": start,
        "found": found,
        "scales": {one.name: one.scales for one in optimizer.grouping_report.layers},
    }


def on_shards(rank, world_size):
    """Every name under FSDP2: its result, or what it was refused with and whether anything had moved."""
    gc.freeze()
    mesh = init_device_mesh("cpu", (world_size,))
    results = {}
    for name in OPTIONS:
        found = {}
        said = refusal(lambda name=name, found=found: found.update(train(name, mesh)))
        results[name] = {"refused": said, **found}
    return results
