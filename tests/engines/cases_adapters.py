"""What each rank does in `test_adapters.py`: SGG around optimizers that know nothing of it, under every engine.

Gradients are given, and exact in any sum over ranks (see `cases_dgs.py`). So a base whose update of an element depends
on that element alone has the same momentum on any number of ranks, bit for bit, and its groups have to be the same.
"""

import functools
import gc
from typing import NamedTuple

import came_pytorch
import pytorch_optimizer
import torch
import transformers

from gradscale import SGG
from gradscale.sharding.dtensor import local_part
from tests.engines.cases_dgs import STEPS, Alone, Fed, gradients, groups_of
from tests.engines.cases_dgs_torch import OnRanks, under
from tests.engines.cases_dgs_zero import UnderZero
from tests.engines.cases_fsdp1 import quiet
from tests.engines.loops_zero import flat_tensors, refusal
from tests.engines.sent import sent_bytes


class LocalNorm(torch.optim.SGD):
    """A step as long as the rate, by the norm of that part of the gradient that it finds here."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    local, grad = local_part(param), local_part(param.grad)
                    local.sub_(grad / (grad.norm() + 1e-8), alpha=group["lr"])


GROUPING = {"recluster_interval": 2, "scale_decay": 0.5, "global_mda": "clusters"}
ELEMENTWISE = {
    "nadam": (torch.optim.NAdam, {"lr": 1e-2, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "radam": (torch.optim.RAdam, {"lr": 1e-2}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2}),  # keeps no momentum
    "lion": (pytorch_optimizer.Lion, {"lr": 1e-3, "weight_decay": 0.1}),
    "adabelief": (pytorch_optimizer.AdaBelief, {"lr": 1e-2, "weight_decay": 0.1}),  # counts in its param groups
}
BY_LAYER = {
    "lamb": (pytorch_optimizer.Lamb, {"lr": 1e-2, "weight_decay": 0.1}),
    "adafactor": (torch.optim.Adafactor, {"lr": 1e-2}),
    "transformers adafactor": (
        transformers.Adafactor,
        {"lr": 1e-2, "scale_parameter": False, "relative_step": False, "beta1": 0.9},
    ),
    "came": (came_pytorch.CAME, {"lr": 1e-3}),
    "muon": (torch.optim.Muon, {"lr": 1e-2}),
    "library's muon": (pytorch_optimizer.Muon, {"lr": 1e-2}),
    "local norm": (LocalNorm, {"lr": 1e-2}),
}
# What takes nothing but matrices, and options of its param groups.
MATRICES = {"muon": {}, "library's muon": {"use_muon": True}}
KINDS = ELEMENTWISE | BY_LAYER


class Case(NamedTuple):
    """A base, and how SGG is put around it.

    Attributes:
        base: its name.
        options: of SGG.
        unlike: options of the param groups, where they differ.
        frozen: see `cases_dgs.Case`.
    """

    base: str
    options: dict[str, object] = {}
    unlike: tuple[dict[str, object], ...] = ()
    frozen: str = ""


CASES = {
    **{name: Case(name) for name in ELEMENTWISE},
    "live": Case("nadam", {"labels": "live"}),
    "live, no momentum": Case("rmsprop", {"labels": "live"}),
    "layer": Case("momentum", {"grouping": "layer", "global_mda": "clusters"}),
    "unlike": Case("adabelief", {}, ({"sgg_n_clusters": 2}, {"sgg_recluster_interval": 3}, {"sgg_scaled": False})),
    "frozen": Case("rmsprop", frozen="second"),
}
FEW = ("nadam", "rmsprop", "unlike")


def optimizer_of(model, case, groups=groups_of):
    """SGG around the base of a case. Without `groups`, all parameters are in one group."""
    kind, options = KINDS[case.base]
    params = [param for param in model.parameters() if param.requires_grad] if groups is None else groups(model)
    if case.base in MATRICES:
        params = [
            {**group, **MATRICES[case.base], "params": [param for param in group["params"] if param.dim() == 2]}
            for group in params
        ]
    for group, own in zip(params, case.unlike, strict=False):
        group.update(own)
    return SGG(kind(params, **options), **{**GROUPING, **case.options}, module=model)


def feed(run, rank=0, world_size=1, *, start=0, stop=STEPS):
    """Step with the given gradients; what one rank gives alone is exact.

    Returns:
        Reports of the groupings by step and layer, the numbers of calls of the base's step by training step, what was
        sent, and weights.
    """
    reports, sent, last = {}, [], getattr(run.optimizer, "grouping_report", None)
    for step, passes in enumerate(gradients(start, stop), start):
        for place, values in enumerate(passes, 1):
            share = 0 if rank else world_size
            run.backward(run.model({name: value * share for name, value in values.items()}), place == len(passes))
        with sent_bytes() as sizes:
            run.step()
        sent.append(sizes)
        report = getattr(run.optimizer, "grouping_report", None)
        if report is not last:
            assert report.step == step + 1
            reports[step], last = {layer.name: layer for layer in report.layers}, report
    return {"facts": run.facts(), "reports": reports, "sent": sent, "weights": run.weights()}


def alone(cases):
    """What the engines are compared with."""
    results = {}
    for name in cases:
        case = case_of(name)
        model = Fed(case.frozen)
        results[name] = feed(Alone(model, optimizer_of(model, case)))
    return results


def made(engine, case):
    """A run of a case under one of torch's engines."""
    model = Fed(case.frozen)
    wrapper = under(engine, model)
    groups = None if "vectors" in engine else groups_of
    return OnRanks(wrapper, optimizer_of(model if engine == "ddp" else wrapper, case, groups))


# Engine of torch and the cases; a case of a base alone has the base's name.
ENGINES = {
    2: {
        "ddp": ("unlike", *BY_LAYER),
        "fsdp2": (*FEW, "live", "adabelief", *BY_LAYER),
        "fsdp1": tuple(CASES),
        "fsdp1 vectors": ("nadam", "rmsprop", "adabelief", "momentum", "lion", "live"),
        "fsdp1 no shard": ("unlike",),
    },
    3: {"fsdp2": (*FEW, "lamb", "library's muon", "local norm"), "fsdp1": FEW},
    4: {"hsdp": (*FEW, "library's muon", "local norm"), "fsdp1 hybrid": FEW},
}
ZERO = {
    **dict.fromkeys(("zero1", "zero2", "zero2 offload", "zero3", "zero3 offload", "bf16 optimizer", "zero2 bf16"), FEW),
    "zero3 small": tuple(CASES),
}
# Not elementwise, on vectors; those for matrices alone cannot even be made of FSDP1's.
ON_VECTORS = {
    **dict.fromkeys(("fsdp1", "fsdp1 vectors"), tuple(name for name in BY_LAYER if name not in MATRICES)),
    **dict.fromkeys(("zero1", "zero2", "zero3 small"), tuple(BY_LAYER)),
}


def case_of(name):
    return CASES.get(name) or Case(name)


def under_zero(kind, case, **how):
    return UnderZero(kind, case, Fed(case.frozen), make=optimizer_of, **how)


def attempted(make, rank, world_size):
    """The result of a case, with what it was refused with, if it was."""
    found = {}
    said = refusal(lambda: found.update(feed(make(), rank, world_size)))
    return {"refused": said, **found}


def on_torch(rank, world_size):
    """All of torch's engines for this number of ranks."""
    gc.freeze()  # what is imported need not be searched each time that a model is made
    with quiet():
        return {
            (engine, name): attempted(functools.partial(made, engine, case_of(name)), rank, world_size)
            for engine, names in ENGINES[world_size].items()
            for name in names
        }


def on_zero(rank, world_size):
    """All kinds of ZeRO."""
    gc.freeze()
    return {
        (kind, name): attempted(functools.partial(under_zero, kind, case_of(name)), rank, world_size)
        for kind, names in ZERO.items()
        for name in names
    }


def refused_on_vectors(rank, world_size):
    """What bases that are not elementwise are refused with, and whether the weights are as before."""
    gc.freeze()
    results = {}
    with quiet():
        for engine, names in ON_VECTORS.items():
            for name in names:
                run = under_zero(engine, Case(name)) if "zero" in engine else made(engine, Case(name))
                stepped = flat_tensors(run.model) if "zero" in engine else list(run.model.parameters())
                before = [tensor.detach().clone() for tensor in stepped]
                said = refusal(functools.partial(feed, run, rank, world_size, stop=1))
                results[engine, name] = said, all(map(torch.equal, before, stepped))
    return results
