"""What each rank does in `test_zero_checkpoints.py`: save and load checkpoints of every kind of ZeRO."""

import shutil
from pathlib import Path

import torch
from torch import nn

from tests.engines.loops_zero import (
    KINDS,
    SAVED_AT,
    STEPS,
    is_same,
    make_engine,
    make_model,
    make_universal,
    options_of,
    refusal,
    said,
    same_tensors,
    snapshot,
    train,
    whole,
)

# How else what is saved may be: what makes the optimizer, and after how many steps it is saved.
VARIANTS = {
    "before any step": ({}, 0),
    "before the first grouping": ({}, 2),
    "live labels": ({"labels": "live"}, SAVED_AT),
    "one cluster": ({"n_clusters": 1}, SAVED_AT),
    "plain AdamW": ({"make": torch.optim.AdamW}, SAVED_AT),
    "amsgrad": ({"amsgrad": True}, SAVED_AT),
}
VARIED = ["zero2", "zero3 small sub-groups"]


def save_one(rank, world_size, folder, tag, zero, steps, **options):
    """Train, save, and go on."""
    engine, optimizer = make_engine(zero, **options)
    train(engine, optimizer, rank, world_size, 0, steps)
    engine.save_checkpoint(folder, tag=tag)
    result = {"saved": snapshot(engine, optimizer), "whole": whole(engine) if tag in KINDS else None}
    result["losses"], result["grouped"] = train(engine, optimizer, rank, world_size, steps, STEPS)
    result["end"] = snapshot(engine, optimizer)
    # DeepSpeed cannot convert what was saved before any step with ZeRO 3.
    if steps:
        make_universal(folder, tag, rank)
    return result


def save(rank, world_size, folder):
    """All checkpoints, of two ranks."""
    results = {zero: save_one(rank, world_size, folder, zero, zero, SAVED_AT) for zero in KINDS}
    for zero in VARIED:
        for name, (options, steps) in VARIANTS.items():
            tag = f"{zero} {name}"
            results[tag] = save_one(rank, world_size, folder, tag, zero, steps, **options)
    return results


def resume_one(rank, world_size, folder, tag, zero, steps, universal=False, **options):
    """Load into an engine with other weights, and go on."""
    engine, optimizer = make_engine(zero, seed=7, universal=universal, **options)
    with said() as texts:
        engine.load_checkpoint(folder, tag=f"{tag}_universal" if universal else tag)
        result = {"loaded": snapshot(engine, optimizer), "whole": whole(engine) if universal else None}
        result["losses"], result["grouped"] = train(engine, optimizer, rank, world_size, steps, STEPS)
    return {**result, "said": texts, "end": snapshot(engine, optimizer)}


def resume(rank, world_size, folder):
    """Every checkpoint, with the same number of ranks; and damaged ones."""
    results = {zero: resume_one(rank, world_size, folder, zero, zero, SAVED_AT) for zero in KINDS}
    for zero in VARIED:
        for name, (options, steps) in VARIANTS.items():
            tag = f"{zero} {name}"
            options = {key: value for key, value in options.items() if key != "make"}
            results[tag] = resume_one(rank, world_size, folder, tag, zero, steps, **options)
    results["plain from ours"] = resume_one(
        rank, world_size, folder, "zero2", "zero2", SAVED_AT, make=torch.optim.AdamW
    )
    results["refused"] = {zero: refused(rank, world_size, folder, zero) for zero in VARIED}
    return results


def _first(state_dict):
    """State of the first tensor, which has scaled layers in it."""
    return state_dict["state"][state_dict["param_groups"][0]["params"][0]]


def _rows(state_dict):
    return state_dict["param_groups"][0]["layers"]["0.weight"]


DAMAGES = {
    "labels beyond K": lambda s: _first(s)["labels"].fill_(7),
    "labels of another shape": lambda s: _first(s).update(labels=_first(s)["labels"][:-1]),
    "a moment of another shape": lambda s: _first(s).update(exp_avg=_first(s)["exp_avg"][:-1]),
    "scales are NaN": lambda s: _rows(s).update(scales=[float("nan")] * 3),
    "scales are text": lambda s: _rows(s).update(scales="1, 1, 1"),
    "boundaries descend": lambda s: _rows(s).update(boundaries=[2.0, 1.0]),
    "another K than its options": lambda s: [group.update(n_clusters=5) for group in s["param_groups"]],
    "an option out of range": lambda s: s["param_groups"][0].update(betas=(0.9, 1.5)),
    "no step": lambda s: _first(s).pop("step"),
}


def damage(folder, tag, rank, name):
    """Write a checkpoint with the same damage on all ranks; return its tag."""
    torch.distributed.barrier()  # the other ranks may still be loading the last one
    if rank == 0:
        shutil.rmtree(f"{folder}/damaged", ignore_errors=True)
        shutil.copytree(f"{folder}/{tag}", f"{folder}/damaged")
    torch.distributed.barrier()
    (path,) = Path(folder, "damaged").glob(f"*zero_pp_rank_{rank}_*optim_states.pt")
    saved = torch.load(path, weights_only=False)
    inner = saved["optimizer_state_dict"]
    DAMAGES[name](inner.get("base_optimizer_state") or inner["optimizer_state_dict"])
    torch.save(saved, path)
    torch.distributed.barrier()
    return "damaged"


def refused(rank, world_size, folder, zero):
    """What loading damaged checkpoints raises, and whether the optimizer is as before."""

    def attempt(tag, engine, optimizer):
        before = snapshot(engine, optimizer)
        text = refusal(lambda: engine.load_checkpoint(folder, tag=tag))
        result = text, is_same(before, snapshot(engine, optimizer))
        if engine.zero_optimization_stage() == 3:
            # DeepSpeed leaves them there when loading fails, and would add them again.
            for group in optimizer.param_groups:
                group["params"] = []
        return result

    def trained(**options):
        engine, optimizer = make_engine(zero, seed=7, **options)
        train(engine, optimizer, rank, world_size, 0, 2)
        return engine, optimizer

    subject = trained()
    results = {name: attempt(damage(folder, zero, rank, name), *subject) for name in DAMAGES}
    results["groups in another order"] = attempt(zero, *trained(order=[2, 1, 0, 3]))
    other = make_model()
    other[3] = nn.Linear(23, 23, bias=False)
    results["another model"] = attempt(zero, *trained(model=other))
    return results


UNIVERSAL_DAMAGES = {
    name: DAMAGES[name]
    for name in ("scales are NaN", "scales are text", "boundaries descend", "another K than its options")
} | {
    "an option out of range": DAMAGES["an option out of range"],
    "other groups": lambda s: s["param_groups"][0]["groups"]["options"].pop(),
}


def on_three(rank, world_size, folder):
    """Universal checkpoints of two ranks on three: every kind of ZeRO."""
    results = {zero: resume_one(rank, world_size, folder, zero, zero, SAVED_AT, universal=True) for zero in KINDS}
    for zero in VARIED:
        engine, _ = make_engine(zero)
        results[f"{zero} ordinary"] = refusal(lambda e=engine, tag=zero: e.load_checkpoint(folder, tag=tag))
    results["saved again"] = {zero: saved_again(rank, world_size, folder, zero) for zero in VARIED}
    return results


def on_one(rank, world_size, folder):
    """Universal checkpoints of two ranks on one: what else they may be of, and damaged ones."""
    results = {}
    for zero in VARIED:
        results[zero] = resume_one(rank, world_size, folder, zero, zero, SAVED_AT, universal=True)
        for name, (options, steps) in VARIANTS.items():
            tag = f"{zero} {name}"
            options = {key: value for key, value in options.items() if key != "make"}
            if name == "amsgrad":
                results[tag] = without_amsgrad(rank, world_size, folder, zero)
            elif steps:
                results[tag] = resume_one(rank, world_size, folder, tag, zero, steps, universal=True, **options)
        results[f"{zero} refused"] = universal_refused(rank, world_size, folder, zero)
    results["loaded in a run"] = loaded_in_a_run(rank, world_size, folder)
    results["changed after loading"] = changed_after_loading(rank, world_size, folder)
    return results


def without_amsgrad(rank, world_size, folder, zero):
    engine, optimizer = make_engine(zero, universal=True, amsgrad=True)
    engine.load_checkpoint(folder, tag=f"{zero} amsgrad_universal")
    return refusal(lambda: train(engine, optimizer, rank, world_size, SAVED_AT, STEPS))


def saved_again(rank, world_size, folder, zero):
    """Load a universal checkpoint, save before any step, and load that one."""
    engine, _ = make_engine(zero, seed=7, universal=True)
    engine.load_checkpoint(folder, tag=f"{zero}_universal")
    engine.save_checkpoint(folder, tag="again", save_latest=False)
    torch.distributed.barrier()
    return resume_one(rank, world_size, folder, "again", zero, SAVED_AT)


def loaded_in_a_run(rank, world_size, folder):
    """Load a universal checkpoint into an optimizer that has stepped and grouped, and save and load that one, too."""
    results = []
    for save_first in (False, True):
        engine, optimizer = make_engine("zero2", seed=7, universal=True)
        train(engine, optimizer, rank, world_size, 0, 4)
        engine.load_checkpoint(folder, tag="zero2_universal")
        if save_first:
            engine.save_checkpoint(folder, tag="again", save_latest=False)
            torch.distributed.barrier()
            results.append(resume_one(rank, world_size, folder, "again", "zero2", SAVED_AT)["losses"])
        else:
            results.append(train(engine, optimizer, rank, world_size, SAVED_AT, STEPS)[0])
    return results


def changed_after_loading(rank, world_size, folder):
    """Options that the user changes between loading a universal checkpoint and the first step."""
    results = {}
    for zero in VARIED:
        engine, optimizer = make_engine(zero, seed=7, universal=True)
        engine.load_checkpoint(folder, tag=f"{zero}_universal")
        for group in optimizer.param_groups[2:]:
            group["lr"] = 1e-3
        train(engine, optimizer, rank, world_size, SAVED_AT, SAVED_AT + 1)
        results[zero] = options_of(optimizer)
    return results


def universal_refused(rank, world_size, folder, zero):
    """What the first step raises after a damaged universal checkpoint, and whether weights and state are as before."""
    results = {}
    source, target = Path(folder, f"{zero}_universal"), Path(folder, "damaged_universal")
    for name, change in UNIVERSAL_DAMAGES.items():
        torch.distributed.barrier()
        if rank == 0:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            path = target / "zero" / "optimizer_state.pt"
            saved = torch.load(path, weights_only=False)
            change(saved.get("optimizer_state_dict") or saved)
            torch.save(saved, path)
        torch.distributed.barrier()
        engine, optimizer = make_engine(zero, seed=7, universal=True)
        engine.load_checkpoint(folder, tag="damaged_universal")
        before = snapshot(engine, optimizer)
        text = refusal(lambda e=engine, o=optimizer: train(e, o, rank, world_size, SAVED_AT, STEPS))
        results[name] = text, same_tensors(before, snapshot(engine, optimizer))
    return results
