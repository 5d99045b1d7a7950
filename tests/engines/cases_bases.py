"""What each rank does in `test_bases.py`: SGG on SGD, Lion and LAMB, fed the same gradients under every engine.

The model, its gradients (exact in any sum over ranks) and the engines are those of `cases_dgs.py`.
"""

import functools
import gc

import torch

from gradscale import SGGSGD, SGGLamb, SGGLion
from tests.engines.cases_dgs import Alone, Case, Fed, feed, groups_of, optimizer_of, train
from tests.engines.cases_dgs_checkpoints import path_of, said_while, spoil
from tests.engines.cases_dgs_torch import OnRanks, under
from tests.engines.cases_dgs_zero import UnderZero
from tests.engines.cases_fsdp1 import quiet
from tests.engines.checkpoints_fsdp1 import KINDS, Sharded, StateDicts, never_offload
from tests.engines.loops_zero import make_universal, refusal
from tests.optim.training import make_model

# Grouped in steps 3 and 6 of 7.
_SGG = {"recluster_interval": 3, "scale_decay": 0.5, "weight_decay": 0.1, "global_mda": "clusters"}
_SGD, _LION, _LAMB = {"lr": 1e-3, **_SGG}, {"lr": 1e-2, **_SGG}, {"lr": 1e-1, **_SGG}
_NESTEROV = {"momentum": 0.9, "nesterov": True}
_LATE = (0, 1, 2, 3, 5)  # steps in which a part of the model is not used: both groupings are among them
CASES = {
    "sgd": Case("sgd", kind=(SGGSGD, _SGD)),
    "sgd, live": Case("sgd, live", kind=(SGGSGD, {**_SGD, "labels": "live"})),
    "sgd, momentum": Case("sgd, momentum", kind=(SGGSGD, {**_SGD, "momentum": 0.9, "dampening": 0.3})),
    "sgd, nesterov": Case("sgd, nesterov", kind=(SGGSGD, {**_SGD, **_NESTEROV})),
    "lion": Case("lion", kind=(SGGLion, _LION)),
    "lion, live": Case("lion, live", kind=(SGGLion, {**_LION, "labels": "live"})),
    "lamb": Case("lamb", kind=(SGGLamb, _LAMB)),
    "lamb, vectors": Case("lamb, vectors", kind=(SGGLamb, {**_LAMB, "adapt_vectors": True, "trust_clip": True})),
    "lamb, one cluster": Case("lamb, one cluster", kind=(SGGLamb, {**_LAMB, "n_clusters": 1})),
}
# Where gradients may be missing: ZeRO gives a parameter that is not used a gradient of zeros.
UNUSED = {f"{name}, unused": CASES[name]._replace(unused=_LATE) for name in ("sgd", "sgd, nesterov", "lion", "lamb")}
COMPILED = {
    f"{name}, compiled": CASES[name]._replace(options={"kernel": "compiled"})
    for name in ("sgd", "lion", "lamb, vectors")
}
EVERY = CASES | UNUSED | COMPILED
FEW = ("sgd", "lion", "lamb")
# By number of ranks: the engines, and the cases that are run there.
TORCH = {
    2: {
        "ddp": ("sgd", "lamb", "sgd, unused"),
        "fsdp2": tuple(EVERY),
        "fsdp1": tuple(EVERY),
        "fsdp1 vectors": (*CASES, *UNUSED),
        "fsdp1 no shard": ("lamb",),
    },
    3: {"fsdp2": FEW},
    4: {"hsdp": FEW, "fsdp1 hybrid": FEW},
}
PARALLEL = {2: ("tensor parallel",), 3: (), 4: ("tensor parallel, fsdp2",)}
ZERO = {
    2: {
        "zero2": tuple(name for name in CASES if "live" not in name),
        "zero2 offload": ("sgd", "lion"),
        "zero3 small": (*CASES, "lamb, vectors, compiled", "lion, compiled"),
        "zero3 offload": ("sgd", "lamb"),
        "bf16 optimizer": FEW,
        "zero3 bf16": ("lion", "lamb"),
    },
    3: {},
    4: {},
}
PLAIN = ("sgd", "sgd, nesterov", "lion", "lamb")
TRAINED = {"sgd": {"lr": 0.1}, "sgd, nesterov": {"lr": 0.03}, "lion": {"lr": 1e-3}, "lamb": {"lr": 2e-2}}

SAVED = 4  # steps before the checkpoint: after the first grouping and before the second
FULL = KINDS["full"][1]
SAVES = {"fsdp2": StateDicts(), "fsdp1": FULL, "fsdp1 vectors mesh": Sharded()}
SAVES_OF_ZERO = ("zero2", "zero3 small")
UNIVERSAL = ("zero2", "zero3 small")


def on_ranks(engine, case):
    """A run of a case under one of torch's engines."""
    model = Fed()
    wrapper = under(engine, model, unused=bool(case.unused))
    groups = None if "vectors" in engine else groups_of
    return OnRanks(wrapper, optimizer_of(model if engine == "ddp" else wrapper, case, groups))


def with_report(run, result):
    """With what the last grouping saw and decided, which are the same on any number of ranks."""
    report = run.optimizer.grouping_report
    layers = () if report is None else {layer.name: layer for layer in report.layers}
    return {**result, "report": None if report is None else (report.step, report.global_mda, layers)}


def fed(run, case, rank=0, world_size=1, **steps):
    return with_report(run, feed(run, rank, world_size, unused=case.unused, **steps))


def trained_case(name):
    kind, options = CASES[name].kind
    return Case(name, kind=(kind, {**options, **TRAINED[name]}))


def parallel(engine, world_size):
    """Train with torch's tensor parallel: every rank has the same rows, or those of its replica."""
    results = {}
    for name in TRAINED:
        wrapper = under(engine, make_model())
        run = OnRanks(wrapper, optimizer_of(wrapper, trained_case(name), groups=None))
        results[name] = with_report(run, train(run))
    return results


def everything(rank, world_size):
    """All engines for this number of ranks."""
    gc.freeze()
    return {
        "torch": {
            engine: {name: fed(on_ranks(engine, EVERY[name]), EVERY[name], rank, world_size) for name in names}
            for engine, names in TORCH[world_size].items()
        },
        "zero": {
            kind: {name: fed(UnderZero(kind, EVERY[name]), EVERY[name], rank, world_size) for name in names}
            for kind, names in ZERO[world_size].items()
        },
        "parallel": {engine: parallel(engine, world_size) for engine in PARALLEL[world_size]},
    }


def alone():
    """The same on one process, without any engine."""
    results = {}
    for name, case in (CASES | UNUSED).items():
        model = Fed()
        results[name] = fed(Alone(model, optimizer_of(model, case)), case)
    for name in COMPILED:
        results[name] = results[name.removesuffix(", compiled")]
    return results


def trained_alone():
    results = {}
    for name in TRAINED:
        model = make_model()
        run = Alone(model, optimizer_of(model, trained_case(name), groups=None))
        results[name] = with_report(run, train(run))
    return results


def save(rank, world_size, folder):
    """Step, save, and go on; then load into runs with other weights, and go on from there."""
    gc.freeze()
    never_offload()
    results = {}
    for engine, kind in SAVES.items():
        for name in PLAIN:
            run, case = on_ranks(engine, CASES[name]), CASES[name]
            feed(run, rank, world_size, stop=SAVED)
            with quiet():
                kind.save(run, path_of(folder, engine, name))
            results[engine, name] = fed(run, case, rank, world_size, start=SAVED)
    for zero in SAVES_OF_ZERO:
        for name in PLAIN:
            run, case = UnderZero(zero, CASES[name]), CASES[name]
            feed(run, rank, world_size, stop=SAVED)
            run.model.save_checkpoint(folder, tag=f"{zero} {name}")
            results[zero, name] = fed(run, case, rank, world_size, start=SAVED)
    for zero in UNIVERSAL:
        make_universal(folder, f"{zero} lamb", rank)
    refused = not_converted(folder, "zero2 lion", rank)
    return {"straight": results, "resumed": resume(rank, world_size, folder), "refused": refused}


def not_converted(folder, tag, rank):
    """What DeepSpeed's converter raises, on the rank that converts."""
    text = refusal(functools.partial(make_universal, folder, tag, rank))
    if text:
        torch.distributed.barrier()  # at which the other ranks wait
    return text


def resume(rank, world_size, folder):
    """Load into runs with other weights, and go on."""
    never_offload()
    results = {}
    for engine, kind in SAVES.items():
        for name in PLAIN:
            run = on_ranks(engine, CASES[name])
            spoil(run)
            with quiet():
                said = said_while(functools.partial(kind.load, run, path_of(folder, engine, name)))
            results[engine, name] = {"said": said, **fed(run, CASES[name], rank, world_size, start=SAVED)}
    for zero in SAVES_OF_ZERO if world_size == 2 else ():
        for name in PLAIN:
            run = UnderZero(zero, CASES[name])
            spoil(run)
            said = said_while(functools.partial(run.model.load_checkpoint, folder, tag=f"{zero} {name}"))
            results[zero, name] = {"said": said, **fed(run, CASES[name], rank, world_size, start=SAVED)}
    return results


def resume_alone(rank, world_size, folder):
    """On one rank: DeepSpeed cannot load a universal checkpoint on a rank that has nothing of a param group."""
    return {zero: universal(rank, world_size, folder, zero) for zero in UNIVERSAL}


def universal(rank, world_size, folder, zero):
    """Go on from DeepSpeed's universal checkpoint of LAMB, which is the one for another number of ranks."""
    run = UnderZero(zero, CASES["lamb"], more={"checkpoint": {"load_universal": True}})
    spoil(run)
    run.model.load_checkpoint(folder, tag=f"{zero} lamb_universal")
    found = {}
    said = said_while(lambda: found.update(fed(run, CASES["lamb"], rank, world_size, start=SAVED)))
    return {"said": said, **found}
