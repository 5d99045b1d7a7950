"""The ways in which users of torch and of accelerate save and load what FSDP1 has sharded."""

import contextlib

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from tests.engines.fsdp_on_cpu import relabel_cpu_ranks


def never_offload():
    """From now on, in this process, FSDP1 never offloads full states, whatever accelerate sets.

    From a CPU to a CPU it copies nothing, and hands out tensors that it frees or overwrites.
    """
    for config in (FullStateDictConfig, FullOptimStateDictConfig):
        config.offload_to_cpu = property(lambda self: False, lambda self, value: None)


def first():
    return torch.distributed.get_rank() == 0


class Full:
    """FULL_STATE_DICT through torch.save, as FSDP1's documentation shows it."""

    rank0_only = False

    def settings(self, run):
        only = {"rank0_only": self.rank0_only}
        configs = FullStateDictConfig(**only), FullOptimStateDictConfig(**only)
        return FSDP.state_dict_type(run.model, StateDictType.FULL_STATE_DICT, *configs)

    def state(self, run):
        with self.settings(run):
            return {"model": run.model.state_dict(), "optim": FSDP.optim_state_dict(run.model, run.optimizer)}

    def save(self, run, folder):
        state = self.state(run)
        if first():
            torch.save(state, folder / "checkpoint.pt")
        torch.distributed.barrier()

    def read(self, run, folder):
        return torch.load(folder / "checkpoint.pt", weights_only=True)

    def take(self, run, state):
        with self.settings(run):
            run.model.load_state_dict(state["model"])
            optim = state["optim"] if first() or not self.rank0_only else None
            optim = FSDP.optim_state_dict_to_load(run.model, run.optimizer, optim)
        run.optimizer.load_state_dict(optim)

    def load(self, run, folder):
        self.take(run, self.read(run, folder))


class FullOfRank0(Full):
    """The same, with the state on the first rank only."""

    rank0_only = True


class Sharded(Full):
    """SHARDED_STATE_DICT through torch.distributed.checkpoint."""

    def settings(self, run):
        return FSDP.state_dict_type(run.model, StateDictType.SHARDED_STATE_DICT)

    def save(self, run, folder):
        with self.settings(run):
            dcp.save(self.state(run), checkpoint_id=folder)

    def read(self, run, folder):
        with self.settings(run):
            state = self.state(run)
            dcp.load(state, checkpoint_id=folder)
        return state


class ShardedByMetadata(Sharded):
    """The same, loaded into tensors that torch makes by what the checkpoint says of itself."""

    def read(self, run, folder):
        with self.settings(run):
            state = {"model": run.model.state_dict()}
            dcp.load(state, checkpoint_id=folder)
            reader = dcp.FileSystemReader(folder)
            return state | dcp.optimizer.load_sharded_optimizer_state_dict(state["model"], "optim", reader)


class StateDicts(Sharded):
    """The functions of torch.distributed.checkpoint.state_dict."""

    options = StateDictOptions()

    def settings(self, run):
        return contextlib.nullcontext()

    def state(self, run):
        optim = get_optimizer_state_dict(run.model, run.optimizer, options=self.options)
        return {"model": get_model_state_dict(run.model, options=self.options), "optim": optim}

    def take(self, run, state):
        set_model_state_dict(run.model, state["model"], options=self.options)
        set_optimizer_state_dict(run.model, run.optimizer, state["optim"], options=self.options)


class FullStateDicts(StateDicts):
    options = StateDictOptions(full_state_dict=True)


class FlattenedStateDicts(StateDicts):
    options = StateDictOptions(flatten_optimizer_state_dict=True)


class Accelerate:
    """accelerate's `save_state` and `load_state`."""

    def save(self, run, folder):
        run.accelerator.save_state(str(folder))

    def load(self, run, folder):
        run.accelerator.load_state(str(folder))


# By name: how the run is made, and how it is saved and loaded.
KINDS = {
    "full": ("torch", Full()),
    "full of rank 0": ("torch", FullOfRank0()),
    "sharded": ("torch", Sharded()),
    "sharded, by metadata": ("torch", ShardedByMetadata()),
    "sharded on a mesh": ("mesh", Sharded()),
    "state dicts": ("torch", StateDicts()),
    "full state dicts": ("torch", FullStateDicts()),
    "accelerate, full": ("FULL_STATE_DICT", Accelerate()),
    "accelerate, sharded": ("SHARDED_STATE_DICT", Accelerate()),
}


def make_accelerator(original, states, wrapping):
    AcceleratorState._reset_state(reset_partial_state=True)
    relabel_cpu_ranks()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=1, use_orig_params=original, state_dict_type=states, **wrapping
    )
    return Accelerator(cpu=True, fsdp_plugin=plugin)


def damages():
    """What is done to a full checkpoint."""

    def rows(change):
        return lambda optim: change(optim["param_groups"][0]["layers"])

    def state(key, value):
        return lambda optim: optim["state"]["2.weight"][key].copy_(torch.tensor(value))

    return {
        "scales of text": rows(lambda layers: layers["0.weight"].update(scales=["a", "b", "c"])),
        "scales of NaN": rows(lambda layers: layers["0.weight"].update(scales=[1.0, float("nan"), 1.0])),
        "a scale too few": rows(lambda layers: layers["0.weight"].update(scales=[1.0, 1.0])),
        "no boundaries": rows(lambda layers: layers["2.weight"].pop("boundaries")),
        "boundaries in disorder": rows(lambda layers: layers["2.weight"].update(boundaries=[1.0, 0.0])),
        "labels of 7": state("labels", 7.0),
        "negative squares": state("exp_avg_sq", -1.0),
        "no clusters": lambda optim: optim["param_groups"][0].update(n_clusters=0),
    }
