"""What each rank does in `test_deepspeed.py`: plain DeepSpeed loops, many kinds of ZeRO in one launch."""

import copy
import gc
import logging
import math
import warnings
from contextlib import nullcontext

import torch
from torch import nn

from gradscale import SGGAdamW
from tests.engines.models_deepspeed import Adapted, Branching, Fed, Tied, Uneven, fill, gradients
from tests.engines.options import OPTIONS
from tests.engines.sent import sent_bytes
from tests.engines.whole_deepspeed import WholeLayers
from tests.optim.training import batches

STEPS, VARIED_STEPS = 20, 12
ROWS = 6  # of each batch

OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
# DeepSpeed would keep models as small as these whole, and each param group in one sub-group.
SMALL = {"stage": 3, "sub_group_size": 5, "stage3_param_persistence_threshold": 0}
BF16 = {"bf16": {"enabled": True}}
FP16 = {"fp16": {"enabled": True, "initial_scale_power": 8}}
KINDS = {
    "stage 0": {"zero": {"stage": 0}},
    "zero1": {"zero": {"stage": 1}},
    "zero2": {"zero": {"stage": 2}},
    "zero2 round robin": {"zero": {"stage": 2, "round_robin_gradients": True}},
    "zero2 offload": {"zero": {"stage": 2, **OFFLOAD}},
    "zero3": {"zero": {"stage": 3}},
    "zero3 small": {"zero": SMALL},
    "zero3 offload": {"zero": {**SMALL, **OFFLOAD, "offload_param": {"device": "cpu"}}},
    "zero3 init": {"zero": {"stage": 3, "stage3_param_persistence_threshold": 0}},
    "bf16 optimizer": {"zero": {"stage": 1}, **BF16, "data_types": {"grad_accum_dtype": "fp32"}},
    "zero2 bf16": {"zero": {"stage": 2}, **BF16},
    "zero3 bf16": {"zero": SMALL, **BF16},
}
FEW = ("zero2 round robin", "zero3 small", "bf16 optimizer")

# Of `start` and `train`, by name of the case.
VARIED = {
    "accumulated": {"accumulate": 2},
    "tied": {"make": Tied},
    "adapters": {"make": Adapted},
    "adapters, all given": {"make": lambda: Adapted(all_given=True)},
    "target_modules": {"target_modules": "mix,head"},
    "unused": {"make": Branching, "loss": lambda *args: branching_loss(*args)},
    "empty group": {"groups": lambda model: [{"params": []}, *model.groups()[:2], {"params": []}, *model.groups()[2:]]},
    "intervals": {"groups": lambda model: unlike(model.groups())},
    "one cluster": {"n_clusters": 1, "embedding_lr_factor": 8},
    "layer": {"grouping": "layer", "global_mda": "clusters"},
    "live": {"labels": "live", "embedding_lr_factor": 8},
    "compiled": {"kernel": "compiled"},
    "of the layer": {"global_mda": "layer"},
    "absolute": {"momentum_sign": "absolute", "global_mda": "parameters"},
}
VARIED_KINDS = {2: ("zero2", "zero3 small"), 3: ("bf16 optimizer",)}


def deepspeed_module():
    """DeepSpeed, without compiling operators that nothing here needs, and without its chatter."""
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*is deprecated. Please use `torch.distributed")
    import deepspeed
    from deepspeed.runtime import bf16_optimizer

    deepspeed.ops.__compatible_ops__ = {}
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    bf16_optimizer.see_memory_usage = lambda *args, **kwargs: None
    # Whether a CPU is fast in float16 is of no interest here.
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    return deepspeed


def config(zero, accumulate=1, **more):
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulate,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **more,
    }


class Alone:
    """One process without DeepSpeed, used like its engine."""

    def __init__(self, model, optimizer, accumulate):
        self.module, self.optimizer, self.accumulate, self.calls = model, optimizer, accumulate, 0

    def __call__(self, *args):
        return self.module(*args)

    def backward(self, loss):
        (loss / self.accumulate).backward()

    def step(self):
        self.calls += 1
        if self.calls % self.accumulate == 0:
            for param in self.module.parameters():
                if param.requires_grad and param.grad is None:
                    param.grad = torch.zeros_like(param)  # as DeepSpeed does
            self.optimizer.step()
            self.optimizer.zero_grad()


def start(kind, make=Uneven, accumulate=1, groups=None, target_modules=None, more=None, **options):
    """An engine and its whole layers.

    The optimizer is made before the engine.

    Args:
        kind: one of `KINDS`, or None for one process without DeepSpeed.
        make: makes the model.
        accumulate: backward passes per step.
        groups: makes param groups of the model; by default the model does.
        target_modules, options: of the optimizer.
        more: settings of DeepSpeed.
    """
    deepspeed = deepspeed_module() if kind else None
    settings = (
        config(accumulate=accumulate, gradient_clipping=0.0, **copy.deepcopy(KINDS[kind]), **(more or {}))
        if kind
        else {}
    )
    with deepspeed.zero.Init(config_dict_or_path=settings) if kind == "zero3 init" else nullcontext():
        model = make()
    partitioned = [param for param in model.parameters() if hasattr(param, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0) if partitioned else nullcontext():
        fill(model)
    groups = model.groups() if groups is None else groups(model)
    optimizer = SGGAdamW(groups, **{**OPTIONS, **options}, module=model, target_modules=target_modules)
    layers = WholeLayers(model, optimizer)
    if kind is None:
        layers.engine = Alone(model, optimizer, accumulate)
    else:
        layers.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    layers.partitioned_at_once = len(partitioned)
    return layers.engine, layers


def next_token_loss(model, batch, *more):
    logits = model(batch[:, :-1], *more).float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def branching_loss(model, batch, whole_batch):
    return next_token_loss(model, batch, bool(whole_batch[0, 0] % 2))


def unlike(groups):
    """Param groups of other intervals and learning rates."""
    return [{**group, "recluster_interval": 3 + i, "lr": 1e-2 / (1 + i)} for i, group in enumerate(groups)]


def rows_of(batch, rank, world_size):
    """This rank's rows of a batch. Of four ranks, each two have the same rows."""
    parts = math.gcd(ROWS, world_size)
    return batch.chunk(parts)[rank * parts // world_size]


def train(kind, rank=0, world_size=1, *, steps=STEPS, loss=None, accumulate=1, **making):
    """Train, each rank on its rows of the batches, and make every grouping again on whole layers."""
    engine, layers = start(kind, accumulate=accumulate, **making)
    calls, losses, sent = [], [], []
    layers.optimizer.register_step_pre_hook(lambda *_: calls.append(layers.clock))
    for index, batch in enumerate(batches(steps * accumulate)):
        mine = rows_of(batch, rank, world_size)
        value = loss(engine, mine, batch) if loss else next_token_loss(engine, mine)
        engine.backward(value)
        with sent_bytes() as sizes:
            engine.step()
        counted = []
        if (index + 1) % accumulate == 0:
            layers.clock += 1
            counted = layers.group_again(rank) if layers.due() else []
        sent.append((counted, sizes))
        if world_size > 1:
            torch.distributed.all_reduce(value)
        losses.append(value.item() / world_size)
    return {
        "engine": facts(layers),
        "calls": calls,
        "losses": losses,
        "decided": layers.decided,
        "wrong": layers.wrong,
        "sent": sent,
        "report": layers.optimizer.grouping_report,
        "weights": {name: layers.whole(name, "fp32") for name in layers.trained},
    }


def facts(layers):
    """What is really running, not what was asked for."""
    engine, zero = layers.engine, layers.engine.optimizer
    if zero is layers.optimizer:
        return {"class": type(zero).__name__}
    return {
        "class": type(zero).__name__,
        "stage": engine.zero_optimization_stage(),
        "gradients partitioned": getattr(zero, "partition_gradients", None),
        "round robin": getattr(zero, "round_robin_gradients", None),
        "offload": bool(getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False)),
        "parameters offloaded": getattr(zero, "offload_param", False),
        "kept whole": len(getattr(zero, "persistent_parameters", [])),
        "tensors": len(layers.flats()),
        "dtype": next(engine.module.parameters()).dtype,
        "partitioned at once": layers.partitioned_at_once,
    }


def fed(kind):
    """Feed gradients that are the same on any number of ranks; return whole layers, bit for bit the same as well."""
    engine, layers = start(kind, make=Fed, recluster_interval=3)
    # DeepSpeed averages over ranks. What one rank gives alone, it sums and averages exactly.
    share = 0 if kind and torch.distributed.get_rank() > 0 else torch.distributed.get_world_size() if kind else 1
    for values in gradients(7):
        engine.backward(engine({name: value * share for name, value in values.items()}))
        engine.step()
    keys = ["fp32", "exp_avg", "exp_avg_sq"]
    return {
        "whole": {(name, key): layers.whole(name, key) for name in values for key in keys}
        | {(name, "labels"): layers.whole(name, "labels") for name in layers.groups},
        "rows": layers.rows(),
        "report": layers.optimizer.grouping_report,
    }


def trainings(rank, world_size):
    """All cases but those of `cases_deepspeed_refused.py`."""
    gc.freeze()  # DeepSpeed collects garbage whenever it starts: not among all that was imported
    kinds = KINDS if world_size in (2, 3) else FEW
    return {
        "trained": {kind: train(kind, rank, world_size) for kind in kinds},
        "fed": {kind: fed(kind) for kind in kinds},
        "varied": {
            (kind, case): train(kind, rank, world_size, steps=VARIED_STEPS, **options)
            for kind in VARIED_KINDS.get(world_size, ())
            for case, options in VARIED.items()
        },
    }


def alone():
    """The same on one process, without DeepSpeed."""
    return {
        "trained": train(None),
        "fed": fed(None),
        "varied": {case: train(None, steps=VARIED_STEPS, **options) for case, options in VARIED.items()},
    }
