"""What each rank does in `test_dgs_checkpoints.py`: save DGS's running importance under every engine, and go on.

They are saved before the step whose gradients are a spike and before a periodic reset: a run that goes on needs the
importance of every element, what is known of its layer, the usual level of gradients and the number of steps.
"""

import copy
import functools
import gc
import warnings
from pathlib import Path

import torch

from tests.engines.cases_dgs import CASES, SPIKE, feed
from tests.engines.cases_dgs_torch import made
from tests.engines.cases_dgs_zero import UnderZero
from tests.engines.cases_fsdp1 import quiet
from tests.engines.checkpoints_fsdp1 import KINDS, FullStateDicts, Sharded, StateDicts, never_offload
from tests.engines.loops_zero import make_universal, refusal

SAVED = SPIKE  # steps before the checkpoint
FULL = KINDS["full"][1]
BY_LAYER = ("running", "running, no momentum", "lars, running", "unlike, by layer")
# Engine, method, and how it is saved.
TORCH = {
    **{("fsdp2", method, "state dicts"): StateDicts() for method in (*BY_LAYER, "full")},
    ("fsdp2", "running", "full state dicts"): FullStateDicts(),
    **{
        ("fsdp1", method, "full"): FULL for method in (*BY_LAYER, "full", "importance, no momentum", "adapter, running")
    },
    # Without a mesh, torch cannot load a sharded checkpoint of a layer with fewer rows than ranks, optimizer or not.
    **{("fsdp1 mesh", method, "sharded"): Sharded() for method in BY_LAYER},
    **{("fsdp1 vectors", method, "full"): FULL for method in BY_LAYER[:3]},
    **{("fsdp1 vectors mesh", method, "sharded"): Sharded() for method in BY_LAYER[:3]},
}
ZERO = [
    *((kind, method) for kind in ("zero2", "zero3 small", "bf16 optimizer") for method in BY_LAYER),
    ("zero2", "full"),
    ("zero3 small", "importance, no momentum"),
    ("zero3 small", "adapter, running"),
]
UNIVERSAL = [(kind, method) for kind in ("zero2", "zero3 small") for method in ("running", "normalized")]


def said_while(action):
    """What the optimizer warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(one.message) for one in caught if "the loaded state" in str(one.message)]


def spoil(run):
    """Give it other weights, so that only a checkpoint makes them right."""
    for param in run.model.parameters():
        param.data.fill_(0.5)


def path_of(folder, *names):
    path = Path(folder, " ".join(names).replace(",", ""))
    path.mkdir(parents=True, exist_ok=True)
    return path


def save(rank, world_size, folder):
    """Train, save, and go on."""
    gc.freeze()
    never_offload()
    results = {}
    for key, kind in TORCH.items():
        engine, method, _ = key
        run = made(engine, CASES[method])
        feed(run, rank, world_size, stop=SAVED)
        with quiet():
            kind.save(run, path_of(folder, *key))
        results[key] = feed(run, rank, world_size, start=SAVED)
    for kind, method in dict.fromkeys((*ZERO, *UNIVERSAL)):
        run = UnderZero(kind, CASES[method])
        feed(run, rank, world_size, stop=SAVED)
        run.model.save_checkpoint(folder, tag=f"{kind} {method}")
        results[kind, method] = feed(run, rank, world_size, start=SAVED)
        if (kind, method) in UNIVERSAL:
            make_universal(folder, f"{kind} {method}", rank)
    return results


def resume(rank, world_size, folder):
    """Load into runs with other weights, and go on."""
    gc.freeze()
    never_offload()
    results = {}
    for key, kind in TORCH.items():
        engine, method, _ = key
        run = made(engine, CASES[method])
        spoil(run)
        path = path_of(folder, *key)
        with quiet():
            said = said_while(functools.partial(kind.load, run, path))
        results[key] = {"said": said, **feed(run, rank, world_size, start=SAVED)}
    for kind, method in ZERO if world_size == 2 else ():
        run = UnderZero(kind, CASES[method])
        spoil(run)
        said = said_while(functools.partial(run.model.load_checkpoint, folder, tag=f"{kind} {method}"))
        results[kind, method] = {"said": said, **feed(run, rank, world_size, start=SAVED)}
    if world_size == 2:
        results["damaged"] = damaged(rank, world_size, folder)
    return results


def resume_alone(rank, world_size, folder):
    """Go on from DeepSpeed's universal checkpoints, which are those for another number of ranks, on one."""
    return {key: universal(rank, world_size, folder, *key) for key in UNIVERSAL}


def universal(rank, world_size, folder, kind, method):
    run = UnderZero(kind, CASES[method], more={"checkpoint": {"load_universal": True}})
    spoil(run)
    run.model.load_checkpoint(folder, tag=f"{kind} {method}_universal")
    found = {}
    said = said_while(lambda: found.update(feed(run, rank, world_size, start=SAVED)))
    return {"said": said, **found}


DAMAGES = {
    "a number too few": lambda rows: rows["first.wide"]["importance_history"].pop(),
    "below 0": lambda rows: rows["first.four"].update(importance_history=[1.0, -1.0, 1.0, 1.0]),
    "text": lambda rows: rows["first.bias"].update(importance_history="none"),
}


def damaged(rank, world_size, folder):
    """What loading damaged checkpoints raises, and whether the optimizer is as before."""
    run, results = made("fsdp1", CASES["running"]), {}
    feed(run, rank, world_size, stop=1)
    good = FULL.read(run, path_of(folder, "fsdp1", "running", "full"))
    for name, damage in DAMAGES.items():
        bad = copy.deepcopy(good)
        damage(bad["optim"]["param_groups"][0]["layers"])
        before = copy.deepcopy(run.optimizer.state_dict())
        with quiet():
            text = refusal(lambda state=bad: FULL.take(run, state))
        after = run.optimizer.state_dict()
        same = all(
            torch.equal(value, after["state"][key][name])
            for key, state in before["state"].items()
            for name, value in state.items()
        )
        results[name] = text, same and before["param_groups"] == after["param_groups"]
    return results
