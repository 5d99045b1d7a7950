"""What each rank does in `test_pools.py`: LoRA of PEFT under engines that lay several matrices into one vector."""

import copy
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from gradscale import SGGAdamW
from tests.engines.cases_deepspeed import KINDS, Alone, config, deepspeed_module

sys.path.insert(0, str(Path(__file__).parents[1] / "integrations" / "scripts"))
import tiny  # noqa: E402

ZERO = ("zero2", "zero3 small")
FSDP1 = {"fsdp1": True, "fsdp1 vectors": False}
SIZES = {"n_clusters": 2, "min_layer_size": 100}
OPTIONS = {"lr": 1e-2, "recluster_interval": 2, "scale_decay": 0.5, "global_mda": "clusters", **SIZES}


def adapted():
    """Matrices of 64 and 128 elements, so that pools are cut in unlike places."""
    torch.manual_seed(3)
    model = tiny.model().requires_grad_(False)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]))


def optimizer_of(model):
    return SGGAdamW([p for p in model.parameters() if p.requires_grad], **OPTIONS, pool="lora", module=model)


def leaves(module):
    """What PEFT's own policy makes a unit: each small trained module, apart from all that is frozen."""
    weight = getattr(module, "weight", None)
    return not list(module.children()) and isinstance(weight, torch.Tensor) and weight.requires_grad


def start(kind):
    """An engine (called, `backward`, `step`) and its optimizer."""
    model = adapted()
    if kind in FSDP1:
        policy = (
            {}
            if FSDP1[kind]
            else {"auto_wrap_policy": lambda *args, **kw: lambda_auto_wrap_policy(*args, lambda_fn=leaves, **kw)}
        )
        model = FSDP(model, use_orig_params=FSDP1[kind], device_id=torch.device("cpu"), **policy)
    optimizer = optimizer_of(model)
    if kind not in ZERO:
        return Alone(model, optimizer, 1), optimizer
    settings = config(gradient_clipping=0.0, **copy.deepcopy(KINDS[kind]))
    engine, *_ = deepspeed_module().initialize(model=model, optimizer=optimizer, config=settings)
    return engine, optimizer


def train(kind):
    """Train on the same batches on every rank, so that the mean over ranks is what one process has."""
    engine, optimizer = start(kind)
    generator = torch.Generator().manual_seed(4)
    for _ in range(6):
        ids = torch.randint(4, len(tiny.WORDS), (4, 10), generator=generator)
        engine.backward(engine(ids).logits.float().log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).mean().neg())
        engine.step()
    return type(engine.module if kind not in ZERO else engine.optimizer).__name__, optimizer.grouping_report


def everything(rank, world_size):
    """All engines."""
    return {kind: train(kind) for kind in (*FSDP1, *ZERO)}
