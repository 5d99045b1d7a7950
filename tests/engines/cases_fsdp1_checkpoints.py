"""What each rank does in `test_fsdp1_checkpoints.py`: checkpoints of FSDP1, and how runs go on from them.

They are saved after step 10: with T = 4, two steps after a grouping and two before the next.
"""

import copy
import functools
import gc
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from tests.engines.cases_fsdp1 import (
    engine_of,
    next_token_loss,
    optimizer_of,
    quiet,
    share,
    whole_state,
    whole_weights,
    wrapped,
)
from tests.engines.checkpoints_fsdp1 import KINDS, FlattenedStateDicts, damages, make_accelerator, never_offload
from tests.engines.models_fsdp1 import adapted, nested
from tests.engines.options import OPTIONS
from tests.optim.training import batches

STOP, END = 10, 16
# On the second of two ranks nothing is left of the embedding, on the first nothing of the vectors.
UNITS = {"auto_wrap_policy": ModuleWrapPolicy({nn.Sequential})}
FULL, SHARDED = KINDS["full"][1], KINDS["sharded"][1]


class Run:
    """A model wrapped by FSDP1, and its optimizer."""

    def __init__(self, original, how="torch", make=nested, optimizer=optimizer_of):
        self.original, self.accelerator, model = original, None, make()
        if how.endswith("STATE_DICT"):
            self.accelerator = make_accelerator(original, how, UNITS)
            if original:  # with the model, or after it
                self.model, prepared = self.accelerator.prepare(model, optimizer(model))
            else:
                self.model = self.accelerator.prepare(model)
                prepared = self.accelerator.prepare(optimizer(self.model))
            self.optimizer = prepared.optimizer
        else:
            self.model = wrapped(model, original, **UNITS, **on_mesh(how))
            self.optimizer = optimizer(self.model)

    def advance(self, stop, start=0):
        rank, world_size, losses = torch.distributed.get_rank(), torch.distributed.get_world_size(), []
        for batch in batches(stop, start=start):
            loss = next_token_loss(self.model, share(batch, rank, world_size))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            torch.distributed.all_reduce(loss)
            losses.append(loss.item() / world_size)
        return losses

    def snapshot(self):
        return {"weights": whole_weights(self.model), **whole_state(self.model, self.optimizer)}

    def spoiled(self):
        """The run with other weights, so that only a checkpoint makes them right."""
        for param in self.model.parameters():
            param.data.fill_(0.5)
        return self

    def load(self, kind, folder):
        """Load a checkpoint; returns what the optimizer warned of."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            kind.load(self, folder)
        return [str(one.message) for one in said if "the loaded state" in str(one.message)]


def on_mesh(how):
    """Arguments of FSDP1 for a run that is made "mesh" or "hybrid"; none for others."""
    if how == "hybrid":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        return {"device_mesh": mesh, "sharding_strategy": ShardingStrategy.HYBRID_SHARD}
    return {"device_mesh": init_device_mesh("cpu", (torch.distributed.get_world_size(),))} if how == "mesh" else {}


def place(folder, name, original):
    path = Path(folder) / f"{name} {original}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def save(folder, names, original, made=None, **how):
    """Train until step 10, save by these kinds, and go on; returns what a resumed run is to be compared with."""
    runs, always = {}, made
    for name in names:
        made, kind = always or KINDS[name][0], KINDS[name][1]
        run = runs.get(made)
        if run is None:
            run = runs[made] = Run(original, made, **how)
            run.advance(STOP)
        kind.save(run, place(folder, name, original))
    run = next(iter(runs.values()))
    saved = run.snapshot()
    return {
        **engine_of(run.model, run.optimizer),
        "saved": saved,
        "losses": run.advance(END, STOP),
        "last": run.snapshot(),
    }


def resume(folder, name, original, saved_with, made=None, **how):
    """Load a checkpoint that was saved with `use_orig_params=saved_with` and go on."""
    run = Run(original, made or KINDS[name][0], **how).spoiled()
    said = run.load(KINDS[name][1], place(folder, name, saved_with))
    loaded, losses = run.snapshot(), run.advance(END, STOP)
    report = run.optimizer.grouping_report
    return {
        **engine_of(run.model, run.optimizer),
        "said": said,
        "loaded": loaded,
        "losses": losses,
        "last": run.snapshot(),
        "report": report,
    }


def resumes(folder, names, swaps=(), **how):
    """By kind, `use_orig_params` when resumed and when saved: how the runs go on."""
    pairs = [(name, original, original) for name in names for original in (True, False)]
    pairs += [(name, not original, original) for name in swaps for original in (True, False)]
    return {pair: resume(folder, *pair, **how) for pair in pairs}


def others(folder):
    """Checkpoints of other optimizers and of other options, of runs that have not begun, and damaged ones."""
    results = {}
    for original in (True, False):
        for name, how in {
            "live": {"optimizer": functools.partial(optimizer_of, options={"labels": "live"})},
            "one cluster": {"optimizer": functools.partial(optimizer_of, options={"n_clusters": 1})},
            "without names": {"optimizer": functools.partial(optimizer_of, named=False)},
        }.items():
            inside = Path(folder) / name
            expected = save(inside, ["full", "sharded"], original, **how)
            for kind in ("full", "sharded"):
                results[name, kind, original] = expected, resume(inside, kind, original, original, **how)
        results["at the start", original] = from_the_start(Path(folder) / "start", original)
        results["adamw", original] = of_adamw(Path(folder) / "adamw", original, nested)
        results["damaged", original] = damaged(folder, original)
    results["adamw, adapted", True] = of_adamw(Path(folder) / "adapted adamw", True, adapted)
    return results


def plain_adamw(model):
    params = [param for param in model.parameters() if param.requires_grad]
    return torch.optim.AdamW(params, lr=OPTIONS["lr"], weight_decay=OPTIONS["weight_decay"])


def from_the_start(folder, original):
    """A checkpoint of a run that has not taken a step."""
    run, results = Run(original), {}
    for name in ("full", "sharded"):
        KINDS[name][1].save(run, place(folder, name, original))
    expected = run.advance(END)
    for name in ("full", "sharded"):
        run = Run(original).spoiled()
        said = run.load(KINDS[name][1], place(folder, name, original))
        results[name] = said, run.advance(END) == expected
    return results


def of_adamw(folder, original, make):
    """Checkpoints of torch's AdamW: how a run goes on from a full one, and what it says to a sharded one."""
    plain = Run(original, make=make, optimizer=plain_adamw)
    plain.advance(STOP)
    FULL.save(plain, place(folder, "full", original))
    SHARDED.save(plain, place(folder, "sharded", original))
    # Without Nesterov's momentum it is the same optimizer, until it groups.
    run = Run(original, make=make, optimizer=functools.partial(optimizer_of, options={"nesterov": False})).spoiled()
    said = run.load(FULL, place(folder, "full", original))
    taken = run.snapshot()
    clock = [group["steps"] for group in run.optimizer.param_groups]
    before = Run(original, make=make)
    unchanged = before.snapshot()
    return {
        "said": said,
        "clock": clock,
        "moments": [
            torch.equal(taken["state"][name][key], value)
            for name, state in whole_state(plain.model, plain.optimizer)["state"].items()
            for key, value in state.items()
        ],
        "losses": (run.advance(12, STOP), plain.advance(12, STOP)),
        "grouped at": run.optimizer.grouping_report.step,
        "sharded": refusal(lambda: SHARDED.load(before, place(folder, "sharded", original))),
        "unchanged": alike(before.snapshot(), unchanged),
    }


def refusal(attempt):
    """What an attempt raises."""
    try:
        attempt()
    except BaseException as error:  # torch.distributed.checkpoint's own errors are none of Exception
        return f"{type(error).__name__}: {error}"
    return None


def alike(one, other):
    """Whether two snapshots are equal bit for bit; vectors have their parameters in another order."""
    if one["weights"].keys() != other["weights"].keys() or one["state"].keys() != other["state"].keys():
        return False
    pairs = [(one["weights"][name], other["weights"][name]) for name in one["weights"]]
    for name, state in one["state"].items():
        if state.keys() != other["state"][name].keys():
            return False
        pairs += [(value, other["state"][name][key]) for key, value in state.items()]
    groups, others = (
        [{**group, "params": sorted(group["params"])} for group in state["param_groups"]] for state in (one, other)
    )
    return groups == others and all(torch.equal(a, b) for a, b in pairs)


def damaged(folder, original):
    """By damage: the error, and whether the optimizer is as before. `folder` has a good checkpoint."""
    good = FULL.read(None, place(folder, "full", original))
    run, results = Run(original), {}
    run.advance(2)
    before = whole_state(run.model, run.optimizer)
    for name, change in damages().items():
        bad = copy.deepcopy(good)
        change(bad["optim"])
        error = refusal(functools.partial(FULL.take, run, bad))
        after = whole_state(run.model, run.optimizer)
        results[name] = error, alike({"weights": {}, **before}, {"weights": {}, **after})
    flattened, state = FlattenedStateDicts(), run.snapshot()
    flattened.save(run, place(folder, "flattened", original))
    error = refusal(lambda: flattened.load(run, place(folder, "flattened", original)))
    results["flattened"] = error, alike(run.snapshot(), state)
    return results


def get_ready():
    never_offload()
    gc.freeze()  # what is imported need not be searched each time that a model is made


def started_on_1(rank, world_size, folder):
    with quiet():
        get_ready()
        inside = Path(folder) / "of 1"
        return {original: save(inside, ["full", "sharded"], original) for original in (True, False)}


def on_2(rank, world_size, folder):
    with quiet():
        get_ready()
        inside = Path(folder) / "of 2"
        return {
            "straight": {original: save(inside, KINDS, original) for original in (True, False)},
            "resumed": resumes(inside, KINDS, swaps=["full", "sharded", "state dicts"]),
            "from 1": resumes(Path(folder) / "of 1", ["full", "sharded"]),
            "others": others(inside),
        }


def on_3(rank, world_size, folder):
    with quiet():
        get_ready()
        inside = Path(folder) / "of 3"
        return {
            "from 2": resumes(Path(folder) / "of 2", KINDS, swaps=["full", "sharded"]),
            "adapted": (
                save(inside, ["full", "sharded"], True, make=adapted),
                [resume(inside, name, True, True, make=adapted) for name in ("full", "sharded")],
            ),
        }


def on_4(rank, world_size, folder):
    """Two groups of two ranks."""
    with quiet():
        get_ready()
        inside, names = Path(folder) / "of 4", ["full", "sharded"]
        return {
            "straight": {original: save(inside, names, original, made="hybrid") for original in (True, False)},
            "resumed": resumes(inside, names, made="hybrid"),
            "from 2": resumes(Path(folder) / "of 2", names, made="hybrid"),
        }


def on_1(rank, world_size, folder):
    with quiet():
        get_ready()
        names = [name for name in KINDS if not name.startswith("accelerate")]
        return {"from 2": resumes(Path(folder) / "of 2", names)}
