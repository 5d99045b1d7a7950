"""What each rank does in `test_adapter_checkpoints.py`: save SGG around an optimizer under every engine, and go on.

They are saved after a grouping and before the next: a run that goes on needs labels and scales, the state of the base,
what that counts in its param groups, and the number of steps.
"""

import functools
import gc

from tests.engines.cases_adapters import Case, case_of, feed, made, optimizer_of, under_zero
from tests.engines.cases_dgs import Fed
from tests.engines.cases_dgs_checkpoints import path_of, said_while, spoil
from tests.engines.cases_dgs_zero import UnderZero
from tests.engines.cases_fsdp1 import quiet
from tests.engines.checkpoints_fsdp1 import KINDS, FullStateDicts, ShardedByMetadata, StateDicts, never_offload
from tests.engines.loops_zero import make_universal, refusal

SAVED = 3  # steps before the checkpoint; groupings are in the second, the fourth and the sixth
FULL = KINDS["full"][1]
# Bases with numbers of their own in the state (NAdam), without momentum, and with a count in the param groups.
SOME = ("nadam", "rmsprop", "adabelief", "live")
# Engine, case, and how it is saved.
TORCH = {
    **{("fsdp2", name, "state dicts"): StateDicts() for name in (*SOME, "unlike", "library's muon")},
    ("fsdp2", "rmsprop", "full state dicts"): FullStateDicts(),
    **{("fsdp1", name, "full"): FULL for name in (*SOME, "unlike")},
    **{("fsdp1 vectors", name, "full"): FULL for name in SOME},
    # Without a mesh, torch cannot load a sharded checkpoint of a layer with fewer rows than ranks, optimizer or not.
    **{("fsdp1 mesh", name, "state dicts"): StateDicts() for name in SOME},
    **{("fsdp1 vectors mesh", name, "by metadata"): ShardedByMetadata() for name in SOME},
}
ZERO = [(kind, name) for kind in ("zero2", "zero3 small", "bf16 optimizer") for name in (*SOME, "unlike")]
UNIVERSAL = [("zero2", "adam"), ("zero3 small", "adam")]


def save(rank, world_size, folder):
    """Train, save, and go on."""
    gc.freeze()
    never_offload()
    results = {}
    for key, kind in TORCH.items():
        engine, name, _ = key
        run = made(engine, case_of(name))
        feed(run, rank, world_size, stop=SAVED)
        with quiet():
            kind.save(run, path_of(folder, *key))
        results[key] = feed(run, rank, world_size, start=SAVED)
    for kind, name in (*ZERO, *UNIVERSAL):
        run = for_universal(kind, name) if (kind, name) in UNIVERSAL else under_zero(kind, case_of(name))
        feed(run, rank, world_size, stop=SAVED)
        run.model.save_checkpoint(folder, tag=f"{kind} {name}")
        results[kind, name] = feed(run, rank, world_size, start=SAVED)
        if (kind, name) in UNIVERSAL:
            make_universal(folder, f"{kind} {name}", rank)
    return results


def resume(rank, world_size, folder):
    """Load into runs with other weights, and go on."""
    gc.freeze()
    never_offload()
    results = {}
    for key, kind in TORCH.items():
        engine, name, _ = key
        run = made(engine, case_of(name))
        spoil(run)
        with quiet():
            said = said_while(functools.partial(kind.load, run, path_of(folder, *key)))
        results[key] = {"said": said, **feed(run, rank, world_size, start=SAVED)}
    for kind, name in ZERO:
        run = under_zero(kind, case_of(name))
        spoil(run)
        said = said_while(functools.partial(run.model.load_checkpoint, folder, tag=f"{kind} {name}"))
        results[kind, name] = {"said": said, **feed(run, rank, world_size, start=SAVED)}
    results["universal"] = {key: universal(rank, world_size, folder, *key) for key in UNIVERSAL}
    return results


def for_universal(kind, name, **how):
    """A run with one param group: DeepSpeed fails to load a universal checkpoint where a rank has padding alone."""
    case = Case(name)
    return UnderZero(kind, case, Fed(case.frozen), make=lambda model, case, _: optimizer_of(model, case, None), **how)


def universal(rank, world_size, folder, kind, name):
    """What the first step after loading DeepSpeed's universal checkpoint is refused with."""
    run = for_universal(kind, name, more={"checkpoint": {"load_universal": True}})
    run.model.load_checkpoint(folder, tag=f"{kind} {name}_universal")
    return refusal(functools.partial(feed, run, rank, world_size, start=SAVED))
