"""What each rank does in `test_dtensor.py`: one launch per number of ranks runs all of these."""

import copy
import io

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from gradscale.optim.sgg_adam import SGGAdamW
from tests.optim.training import batches, make_model, train

# Rows that do not divide, fewer rows than ranks (empty shards), one element, vectors, a scalar-like row.
SHAPES = {"wide": (7, 33), "tall": (50, 6), "one row": (1, 40), "one": (1, 1), "bias": (7,), "conv": (5, 2, 3, 3)}
# What they are called where LoRA's matrices are pooled: two pools, and a layer in none.
ADAPTERS = {
    "wide": "block.q.lora_A.default.weight",
    "tall": "block.q.lora_B.default.weight",
    "one row": "block.v.lora_A.default.weight",
    "one": "block.v.lora_B.default.weight",
}
LAYOUTS = ["fsdp2", "tensor parallel", "hsdp"]  # the last on 4 ranks only
OPTIONS = {"lr": 1e-2, "recluster_interval": 3, "scale_decay": 0.5, "weight_decay": 0.1}


def whole(tensor):
    """The full tensor on every rank."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def snapshot(params, optimizer):
    """Parameters and state as plain whole tensors, by name."""
    result = {}
    for name, param in params.items():
        result[name] = {"param": whole(param)}
        result[name].update({key: whole(value) for key, value in optimizer.state[param].items()})
    return result


def fed(placements_of, mesh, steps=7, **options):
    """Train parameters of awkward shapes on given gradients, the same on every number of ranks."""
    generator = torch.Generator().manual_seed(5)

    def place(tensor, dim):
        return tensor if mesh is None else distribute_tensor(tensor, mesh, placements_of(dim))

    params = {}
    for name, shape in SHAPES.items():
        params[name] = torch.nn.Parameter(place(torch.randn(shape, generator=generator), len(shape)))
    named = [(ADAPTERS.get(name, name), param) for name, param in params.items()]
    optimizer = SGGAdamW(named, **{**OPTIONS, **options})
    for _ in range(steps):
        for name, param in params.items():
            grad = torch.randn(SHAPES[name], generator=generator).pow(3)  # heavy tails
            param.grad = place(grad, len(SHAPES[name]))
        optimizer.step()
    return snapshot(params, optimizer), optimizer.grouping_report


def placements(world_size):
    """Name to (mesh, placements by number of dimensions) of every layout that this number of ranks allows."""
    line = init_device_mesh("cpu", (world_size,))
    layouts = {
        "rows": (line, lambda dim: [Shard(0)]),
        "columns": (line, lambda dim: [Shard(dim - 1)]),
        "replicas": (line, lambda dim: [Replicate()]),
    }
    if world_size == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        layouts["hybrid"] = (square, lambda dim: [Replicate(), Shard(0)])
        layouts["rows and columns"] = (square, lambda dim: [Shard(0), Shard(dim - 1)] if dim > 1 else [Shard(0)] * 2)
    return layouts


def layouts(rank, world_size):
    """Every layout, with frozen and live labels, all global MDAs, and pools."""
    results = {}
    for name, (mesh, place) in placements(world_size).items():
        for labels in ("frozen", "live"):
            for over in ("clusters", "parameters", "layer"):
                results[name, labels, over] = fed(place, mesh, labels=labels, global_mda=over)
        results[name, "frozen", "pools"] = fed(place, mesh, pool="lora")
    return results


ABLATIONS = [
    {"grouping": "gmm", "statistic": "variance"},
    {"grouping": "dbscan", "statistic": "mad", "labels": "live"},
    {"grouping": "minibatch_kmeans", "statistic": "mean", "momentum_sign": "absolute", "labels_device": "cpu"},
]


def ablations(rank, world_size):
    """The paper's other groupings and statistics of sharded layers, and what cannot be had of shards."""
    mesh, place = placements(world_size)["rows"]
    try:
        fed(place, mesh, grouping="static")
    except RuntimeError as error:
        refused = str(error)
    return [fed(place, mesh, steps=4, **options) for options in ABLATIONS], refused


def sharded_model(layout, seed=0):
    """The small model under `fully_shard`, hybrid sharding or tensor parallel, over all ranks."""
    model = make_model(seed)
    if layout == "tensor parallel":
        columns = ColwiseParallel(output_layouts=Replicate())
        return parallelize_module(
            model, init_device_mesh("cpu", (dist.get_world_size(),)), {"1": columns, "3": columns}
        )
    mesh = None
    if layout == "hsdp":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for layer in (model[1], model[3]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def training(rank, world_size, layout):
    """Losses of a sharded model, every rank on the same batches, and what really shards it."""
    model = sharded_model(layout)
    optimizer = SGGAdamW(model.parameters(), **OPTIONS, module=model)
    placements = {str(param.placements) for param in model.parameters() if isinstance(param, DTensor)}
    losses = train(model, optimizer, batches(20))
    kinds = {key: type(value).__name__ for key, value in optimizer.state[model[1].weight].items()}
    return {"losses": losses, "placements": placements, "kinds": kinds, "report": optimizer.grouping_report}


def resume(rank, world_size, layout, folder, save):
    """Train 10 steps; with `save`, store a distributed checkpoint after 5, else start from the stored one."""
    model = sharded_model(layout, seed=0 if save else 9)
    optimizer = SGGAdamW(model.parameters(), **OPTIONS)
    made = set()
    if save:
        train(model, optimizer, batches(5))
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    if save:
        dcp.save(state, checkpoint_id=folder)
    else:
        made = {int(entry["step"]) for entry in optimizer.state.values()}
        dcp.load(state, checkpoint_id=folder)
        model.load_state_dict(state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
    loaded = snapshot(dict(model.named_parameters()), optimizer)
    dtypes = {key: value.dtype for key, value in optimizer.state[model[1].weight].items()}
    losses = train(model, optimizer, batches(10, start=5))
    return {"made": made, "at 5": loaded, "losses": losses, "dtypes": dtypes}


def refused(rank, world_size):
    """A partial placement has to raise on every rank, and change nothing."""
    from torch.distributed.tensor import Partial

    mesh = init_device_mesh("cpu", (world_size,))
    param = torch.nn.Parameter(DTensor.from_local(torch.randn(4, 4), mesh, [Partial()]))
    optimizer = SGGAdamW([param])
    param.grad = DTensor.from_local(torch.randn(4, 4), mesh, [Partial()])
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error), len(optimizer.state)
    return "", len(optimizer.state)


def non_finite(rank, world_size):
    """A NaN on the last rank alone: every rank has to leave that layer out."""
    import warnings

    mesh = init_device_mesh("cpu", (world_size,))
    params = {name: torch.nn.Parameter(distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)])) for name in "ab"}
    optimizer = SGGAdamW(list(params.items()), recluster_interval=1)
    generator = torch.Generator().manual_seed(0)
    for name, param in params.items():
        grad = torch.randn(8, 3, generator=generator)
        if name == "a":
            grad[7, 0] = float("nan")
        param.grad = distribute_tensor(grad, mesh, [Shard(0)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    report = optimizer.grouping_report
    said = sum("momentum of a holds inf or NaN" in str(warning.message) for warning in caught)
    return report.waiting, [layer.name for layer in report.layers], said


def copies(rank, world_size):
    """deepcopy and torch.save of sharded state go on as the original does."""
    model = sharded_model("fsdp2")
    optimizer = SGGAdamW(model.parameters(), **OPTIONS)
    train(model, optimizer, batches(4))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    twin = SGGAdamW(model.parameters(), **OPTIONS)
    buffer.seek(0)
    twin.load_state_dict(copy.deepcopy(torch.load(buffer, weights_only=False)))
    same = all(
        torch.equal(whole(value), whole(twin.state[param][key]))
        for param, state in optimizer.state.items()
        for key, value in state.items()
    )
    return same, dist.get_backend()


def everything(rank, world_size, folder):
    """All cases of this engine in one launch."""
    results = {
        "layouts": layouts(rank, world_size),
        "refused": refused(rank, world_size),
        "ablations": ablations(rank, world_size) if world_size == 2 else None,
        "non_finite": non_finite(rank, world_size),
        "copies": copies(rank, world_size),
    }
    for layout in LAYOUTS if world_size == 4 else LAYOUTS[:2]:
        saved = f"{folder}/{layout} on {world_size}"
        results[layout] = {
            "training": training(rank, world_size, layout),
            "saved": resume(rank, world_size, layout, saved, True),
            "resumed": resume(rank, world_size, layout, saved, False),
        }
        if world_size != 2:
            other = "fsdp2" if layout == "hsdp" else layout
            results[layout]["from 2"] = resume(rank, world_size, layout, f"{folder}/{other} on 2", False)
    return results
