"""What each rank does in `test_fsdp1.py`: torch's FSDP1 in plain loops, wrapped in all ways."""

import contextlib
import gc
import math
import warnings

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    MixedPrecision,
    ShardingStrategy,
    StateDictType,
)
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp._flat_param import FlatParameter
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils._pytree import tree_map_only

from gradscale import SGGAdamW
from gradscale.optim.rule import Layer
from gradscale.optim.sgg_scaler import SGGScaler
from tests.engines import cases_accelerate
from tests.engines.cases_accelerate import ROWS, STEPS, Branches
from tests.engines.models_fsdp1 import adapted, frozen_rest, narrow, nested, tied, tiny
from tests.engines.sent import sent_bytes
from tests.optim.training import batches, make_model

UNITS = {"auto_wrap_policy": ModuleWrapPolicy({nn.Linear})}
ZERO2 = {"sharding_strategy": ShardingStrategy.SHARD_GRAD_OP}


def next_token_loss(model, batch):
    logits = model(batch[:, :-1]).float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def of_tokens(model, batch):
    """A loss for a model that takes two numbers."""
    numbers = batch[:, :2].float() / 40
    return (model(numbers) - numbers.flip(1)).square().mean()


def one_half(model, batch):
    """Of the two halves of a batch, only those with an odd first token use the layer `extra`."""
    logits = model(batch[:, :-1], bool(batch[0, 0] % 2))
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def both_halves(model, batch):
    """The same on one process. FSDP1 gives an unused layer of a unit a gradient of zeros."""
    for param in model.parameters():
        param.grad = torch.zeros_like(param) if param.grad is None else param.grad
    return sum(one_half(model, half) for half in batch.split(ROWS // 2)) / 2


# Engines round differently, and where two cuts are nearly as good as each other that decides. With this rate none are.
OPTIONS = {**cases_accelerate.OPTIONS, "lr": 6e-3}

# What is trained, and how it is wrapped. `original` lists the values of `use_orig_params`.
CASES = {
    "units": {"wrapping": UNITS},
    "one unit": {},
    "nested": {"make": nested, "wrapping": {"auto_wrap_policy": ModuleWrapPolicy({nn.Linear, nn.Sequential})}},
    "no shard": {"wrapping": {"sharding_strategy": ShardingStrategy.NO_SHARD, **UNITS}},
    "shard grad op": {"wrapping": {**ZERO2, **UNITS}},
    "half precision": {"wrapping": {"mixed_precision": MixedPrecision(param_dtype=torch.bfloat16), **UNITS}},
    "narrow": {"make": narrow, "wrapping": UNITS},
    "tiny": {"make": tiny, "loss": of_tokens},
    "tied": {"make": tied, "wrapping": UNITS},
    "accumulated": {"wrapping": UNITS, "accumulate": 2},
    "without names": {"wrapping": UNITS, "named": False},
    "made before": {"wrapping": UNITS, "before": True, "original": [True]},
    "adapted": {"make": adapted, "original": [True]},
    "frozen rest": {"make": frozen_rest, "wrapping": UNITS, "original": [True]},
    "target": {"options": {"target_modules": ["1"]}, "wrapping": UNITS, "original": [True]},
    "target before": {"options": {"target_modules": ["1"]}, "before": True, "original": [True]},
    "live": {"options": {"labels": "live", "embedding_lr_factor": 8}, "wrapping": UNITS},
    "mixture": {"options": {"grouping": "gmm", "statistic": "variance"}, "wrapping": UNITS},
    "compiled": {"options": {"kernel": "compiled"}, "wrapping": UNITS},
    "unused": {"make": Branches, "loss": one_half},
}
ON_3 = ("units", "nested", "narrow", "tiny", "adapted")


def hybrid_wrappings():
    """Two groups of two ranks: by a device mesh, and by process groups."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    hybrid = {"sharding_strategy": ShardingStrategy.HYBRID_SHARD, **UNITS}
    groups = mesh.get_group("shard"), mesh.get_group("replicate")
    return {"hybrid by mesh": {**hybrid, "device_mesh": mesh}, "hybrid by groups": {**hybrid, "process_group": groups}}


def wrapped(model, original, **wrapping):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `NO_SHARD` sharding strategy is deprecated")
        return FSDP(model, use_orig_params=original, device_id=torch.device("cpu"), **wrapping)


def optimizer_of(model, named=True, options=None):
    params = [param for param in model.parameters() if param.requires_grad]
    return SGGAdamW(params, **{**OPTIONS, **(options or {})}, module=model if named else None)


def made(original, *, make=make_model, wrapping=None, before=False, **how):
    """A wrapped model and its optimizer, which is made before wrapping or after."""
    model = make()
    optimizer = optimizer_of(model, **how) if before or original is None else None
    if original is not None:
        model = wrapped(model, original, **(wrapping or {}))
    return model, optimizer or optimizer_of(model, **how)


def engine_of(model, optimizer):
    """What is really there, not what was asked for."""
    if not isinstance(model, FSDP):
        return {}
    units = FSDP.fsdp_modules(model)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return {
        "units": len(units),
        "vectors": [isinstance(param, FlatParameter) for param in params],
        "sharded": [unit._handle.uses_sharded_strategy and unit._handle.world_size > 1 for unit in units],
        "strategies": {unit.sharding_strategy.name for unit in units},
        "here": [param.numel() for param in params],
    }


def whole_state(model, optimizer):
    """The optimizer's state as FSDP1 itself puts it together from all ranks, by name, on every rank.

    With `offload_to_cpu`, on a CPU, FSDP1 returns views of one buffer: all tensors have the values of the last one.
    """
    configs = FullStateDictConfig(), FullOptimStateDictConfig(offload_to_cpu=False)
    with quiet(), FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT, *configs):
        return copied(FSDP.optim_state_dict(model, optimizer))


def copied(state):
    """A copy of an optimizer's state dict: of what is not sharded, FSDP1 returns the optimizer's own tensors."""
    return tree_map_only(torch.Tensor, torch.Tensor.clone, state)


def whole_weights(model):
    """Copies of all parameters, by their names in the model as it was before wrapping."""
    with FSDP.summon_full_params(model, writeback=False) if isinstance(model, FSDP) else contextlib.nullcontext():
        return {
            name.replace("_fsdp_wrapped_module.", ""): param.detach().clone()
            for name, param in model.named_parameters()
        }


@contextlib.contextmanager
def quiet():
    """torch warns of what its own code does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP.state_dict_type")
        warnings.filterwarnings("ignore", message=".*_get_pg_default_device")
        warnings.filterwarnings("ignore", message="Multiple backends are registered")
        yield


class Expected:
    """What every rank should decide: the groupings of whole momenta, from the first on, without any engine."""

    def __init__(self, optimizer):
        self.group = dict(optimizer.param_groups[0])
        self.states = {}

    def agrees(self, optimizer, whole, clock):
        """Whether the last grouping is the expected one: report, labels, scales and boundaries, bit for bit."""
        given, layers = optimizer.grouping_report, []
        for name in [layer.name for layer in given.layers]:
            momentum = whole["state"][name]["exp_avg"]
            slots = SGGScaler().slots(momentum.shape, None, self.group)
            state = {key: torch.full(slot.shape, slot.fill, dtype=slot.dtype) for key, slot in slots.items()}
            state = self.states.setdefault(name, state)
            layers.append(Layer(name, momentum.numel(), (), momentum, state, self.group, True))
        report = SGGScaler().observe(layers, clock)
        rows = whole["param_groups"][0]["layers"]
        same = [
            torch.equal(torch.tensor(rows[name][key]), state[key])
            for name, state in self.states.items()
            for key in ("scales", "boundaries")
        ]
        same += [
            torch.equal(whole["state"][name]["labels"].to(torch.uint8), state["labels"])
            for name, state in self.states.items()
            if "labels" in state
        ]
        return all(same) and report == given and rows.keys() == self.states.keys()


def share(batch, rank, world_size):
    """This rank's rows. Of four ranks, each two have the same."""
    parts = math.gcd(ROWS, world_size)
    return batch.chunk(parts)[rank * parts // world_size]


def training(rank, world_size, original, *, loss=next_token_loss, accumulate=1, **case):
    """Train 20 steps, each rank on its rows of the batches; on this process alone where `original` is None."""
    model, optimizer = made(original, **case)
    expected, losses, right, rows, sent = Expected(optimizer), [], [], [], []
    for index, batch in enumerate(batches(STEPS * accumulate)):
        clock, rest = divmod(index + 1, accumulate)
        with model.no_sync() if rest and original is not None else contextlib.nullcontext():
            value = loss(model, share(batch, rank, world_size))
            value.backward()
        total = value.detach().clone()
        if original is not None:
            torch.distributed.all_reduce(total)
        losses.append(total.item() / world_size)
        if rest:
            continue
        with sent_bytes() as sizes:
            optimizer.step()
        optimizer.zero_grad()
        sent.append(sizes)
        if clock % OPTIONS["recluster_interval"] == 0 and original is not None and case.get("named", True):
            whole = whole_state(model, optimizer)
            rows.append(whole["param_groups"][0]["layers"])
            if rank == 0:  # what the others have is in `whole`, or in their rows and reports
                right.append(expected.agrees(optimizer, whole, clock))
    return {
        **engine_of(model, optimizer),
        "losses": losses,
        "right": right,
        "rows": rows,
        "sent": sent,
        "report": optimizer.grouping_report,
        "weights": whole_weights(model),
    }


def alone():
    """Every case on this process: what the ranks are compared with."""
    results = {}
    for name, case in CASES.items():
        case = {key: value for key, value in case.items() if key not in ("original", "wrapping", "before")}
        if case.get("loss") is one_half:
            case["loss"] = both_halves
        results[name] = training(0, 1, None, **case)
    return results


def everything(rank, world_size):
    """All cases for this number of ranks, by name and `use_orig_params`."""
    gc.freeze()  # what is imported need not be searched each time that a model is made
    cases = {name: CASES[name] for name in (ON_3 if world_size == 3 else CASES)}
    if world_size == 4:
        cases = {name: {"wrapping": wrapping} for name, wrapping in hybrid_wrappings().items()}
    results = {}
    for name, case in cases.items():
        case = dict(case)
        for original in case.pop("original", [True, False]):
            results[name, original] = training(rank, world_size, original, **case)
    return results
