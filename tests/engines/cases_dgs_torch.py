"""What each rank does in `test_dgs.py`: DGS under torch's DDP, FSDP2, hybrid sharding, tensor parallel and FSDP1."""

import contextlib
import gc
import math

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import ShardingStrategy, fully_shard
from torch.distributed.fsdp._flat_param import FlatParameter
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.engines.cases_accelerate import whole
from tests.engines.cases_dgs import (
    CASES,
    TRAINED,
    UNLIKE,
    Alone,
    Case,
    Fed,
    Part,
    feed,
    groups_of,
    optimizer_of,
    train,
)
from tests.engines.cases_fsdp1 import ROWS, whole_weights, wrapped
from tests.optim.training import make_model

# By number of ranks, and whether all cases are run or a few. A name of FSDP1 says how: parameters as "vectors", on a
# "mesh".
ENGINES = {
    2: {"ddp": False, "fsdp2": True, "fsdp1": True, "fsdp1 vectors": True, "fsdp1 no shard": False},
    3: {"fsdp2": False},
    4: {"hsdp": False, "fsdp1 hybrid": False},
}
FEW = (
    "equation",
    "full",
    "importance",
    "adapter",
    "adapter, by layer",
    "lars, running",
    "unlike, by layer",
    "unused, running",
    "frozen",
)
# Only trained: by torch's tensor parallel, also on top of FSDP2.
PARALLEL = {2: ("tensor parallel",), 3: (), 4: ("tensor parallel, fsdp2",)}
UNITS = {"auto_wrap_policy": ModuleWrapPolicy({Part, nn.Linear})}


class OnRanks(Alone):
    """One of torch's engines. All passes of a step but the last are not synchronized, where the engine can do that."""

    def backward(self, loss, last):
        if hasattr(self.model, "set_requires_gradient_sync"):
            self.model.set_requires_gradient_sync(last)
        has_mode = isinstance(self.model, DistributedDataParallel | FSDP) and not last
        with self.model.no_sync() if has_mode else contextlib.nullcontext():
            super().backward(loss, last)

    def weights(self):
        if isinstance(self.model, FSDP):
            return whole_weights(self.model)
        inner = getattr(self.model, "module", self.model)
        return {name: whole(param) for name, param in inner.named_parameters()}

    def facts(self):
        """What is really there, not what was asked for."""
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        units = FSDP.fsdp_modules(self.model) if isinstance(self.model, FSDP) else []
        saved = self.optimizer.state_dict()["param_groups"][0] if units else {}
        return {
            "class": type(self.model).__name__,
            "placements": {str(param.placements) for param in params if isinstance(param, DTensor)},
            "vectors": {isinstance(param, FlatParameter) for param in params},
            "strategies": {unit.sharding_strategy.name for unit in units},
            "layers": saved.get("layers", {}),
            "here": [(param.to_local() if isinstance(param, DTensor) else param).numel() for param in params],
        }


def square():
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def under(engine, model, unused=False):
    """The model, as the engine has it.

    Args:
        engine: its name.
        model: the model.
        unused: whether a part is not used in some steps.
    """
    if engine == "ddp":
        return DistributedDataParallel(model, find_unused_parameters=unused)
    if "tensor parallel" in engine:
        mesh = square() if "fsdp2" in engine else init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        lines = mesh["shard"] if mesh.ndim > 1 else mesh
        columns = ColwiseParallel(output_layouts=Replicate())
        model = parallelize_module(
            model, lines, {"1": columns, "3": RowwiseParallel(input_layouts=Replicate(), use_local_output=True)}
        )
        return fully_shard(model, mesh=mesh["replicate"]) if mesh.ndim > 1 else model
    if engine in ("fsdp2", "hsdp"):
        mesh = square() if engine == "hsdp" else None
        for part in model.children():
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    how = dict(UNITS)
    if "hybrid" in engine:
        how |= {"sharding_strategy": ShardingStrategy.HYBRID_SHARD, "device_mesh": square()}
    if "no shard" in engine:
        how |= {"sharding_strategy": ShardingStrategy.NO_SHARD}
    if "mesh" in engine:
        how |= {"device_mesh": init_device_mesh("cpu", (torch.distributed.get_world_size(),))}
    return wrapped(model, "vectors" not in engine, **how)


def made(engine, case):
    """A run of a case on the model that is fed."""
    model = Fed(case.frozen)
    # DDP's optimizer has the parameters of the model itself.
    wrapper = under(engine, model, unused=bool(case.unused))
    groups = None if "vectors" in engine else groups_of
    return OnRanks(wrapper, optimizer_of(model if engine == "ddp" else wrapper, case, groups))


def fed(engine, rank, world_size):
    results = {}
    for name in CASES if ENGINES[world_size][engine] else FEW:
        case = CASES[name]
        if case.method not in UNLIKE or "vectors" not in engine:
            results[name] = feed(made(engine, case), rank, world_size, unused=case.unused)
    return results


def trained(engine, rank, world_size):
    """Every rank has its rows of the batches, but in tensor parallel those of its replica."""
    ranks, place = world_size, rank
    if "tensor parallel" in engine:
        ranks, place = (2, rank // 2) if "fsdp2" in engine else (1, 0)
    shares = math.gcd(ROWS, ranks)  # of four ranks, each two have the same rows
    results = {}
    for name in TRAINED:
        model = make_model()
        wrapper = under(engine, model)
        run = OnRanks(wrapper, optimizer_of(model if engine == "ddp" else wrapper, Case(name), groups=None))
        result = results[name] = train(run, shares, place * shares // ranks)
        losses = torch.tensor(result["losses"], dtype=torch.float64)
        torch.distributed.all_reduce(losses)
        result["losses"] = (losses / world_size).tolist()
    return results


def everything(rank, world_size):
    """All engines for this number of ranks."""
    gc.freeze()  # what is imported need not be searched each time that a model is made
    return {
        "fed": {engine: fed(engine, rank, world_size) for engine in ENGINES[world_size]},
        "trained": {
            engine: trained(engine, rank, world_size) for engine in (*ENGINES[world_size], *PARALLEL[world_size])
        },
    }
