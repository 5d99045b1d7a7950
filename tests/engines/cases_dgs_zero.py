"""What each rank does in `test_dgs_zero.py`: DGS under plain DeepSpeed, with many kinds of ZeRO in one launch."""

import copy
import gc
from collections import Counter

import torch

from tests.engines.cases_deepspeed import KINDS, config, deepspeed_module
from tests.engines.cases_dgs import ACCUMULATE, CASES, TRAINED, Case, Fed, feed, groups_of, optimizer_of, train
from tests.engines.whole_deepspeed import full
from tests.optim.training import make_model

FED = (
    "zero1",
    "zero2",
    "zero2 offload",
    "zero3",
    "zero3 small",
    "zero3 offload",
    "bf16 optimizer",
    "zero2 bf16",
    "zero3 bf16",
)
# All cases; of the others a few.
ALL = ("zero2", "zero3 small")
FEW = ("full", "importance", "adapter, by layer", "running", "lars, running", "unlike, by layer")


class UnderZero:
    """A DeepSpeed engine, used like one process."""

    def __init__(self, kind, case, model=None, groups=groups_of, more=None, make=optimizer_of):
        deepspeed = deepspeed_module()
        settings = config(accumulate=ACCUMULATE, gradient_clipping=0.0, **copy.deepcopy(KINDS[kind]), **(more or {}))
        model = Fed(case.frozen) if model is None else model
        self.optimizer, self.calls, self.steps = make(model, case, groups), Counter(), 0
        self.model, *_ = deepspeed.initialize(model=model, optimizer=self.optimizer, config=settings)
        self.optimizer.register_step_pre_hook(lambda *_: self.calls.update([self.steps]))

    def backward(self, loss, last):
        self.model.backward(loss)
        if not last:
            self.model.step()  # DeepSpeed itself counts the passes of a step

    def step(self):
        self.model.step()
        self.steps += 1

    def weights(self):
        params = self.model.module.named_parameters()
        return {name: full(param, "fp32").detach().clone() for name, param in params if param.requires_grad}

    def facts(self):
        """What is really running, not what was asked for."""
        zero = self.model.optimizer
        return {
            "class": type(zero).__name__,
            "stage": self.model.zero_optimization_stage(),
            "offload": bool(getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False)),
            "calls": set(self.calls.values()),
            "dtype": next(self.model.module.parameters()).dtype,
        }


def fed(kind, rank, world_size):
    results = {}
    for name, case in CASES.items():
        # ZeRO gives a parameter that is not used a gradient of zeros: another training than that of one process.
        if not case.unused and (kind in ALL or name in FEW):
            results[name] = feed(UnderZero(kind, case), rank, world_size)
    return results


def trained(kind, rank, world_size):
    results = {}
    for name in TRAINED:
        run = UnderZero(kind, Case(name), make_model(), lambda model: [{"params": [p]} for p in model.parameters()])
        result = results[name] = train(run, world_size, rank)
        losses = torch.tensor(result["losses"], dtype=torch.float64)
        torch.distributed.all_reduce(losses)
        result["losses"] = (losses / world_size).tolist()
    return results


def everything(rank, world_size):
    """All kinds of ZeRO."""
    gc.freeze()  # DeepSpeed collects garbage whenever it starts: not among all that was imported
    return {
        "fed": {kind: fed(kind, rank, world_size) for kind in FED},
        "trained": {kind: trained(kind, rank, world_size) for kind in ALL},
    }
