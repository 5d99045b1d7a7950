"""Plain DeepSpeed loops for `cases_zero_checkpoints.py`: kinds of ZeRO, and all that a checkpoint has to bring back."""

import argparse
import contextlib
import copy
import io
import warnings

import torch
from torch import nn

from gradscale import SGGAdamW
from tests.engines.cases_deepspeed import config, deepspeed_module
from tests.engines.options import OPTIONS
from tests.optim.training import batches

SAVED_AT, STEPS = 5, 10
# DeepSpeed would keep layers as small as these whole, and those of a param group together.
SMALL = {"stage": 3, "sub_group_size": 100, "stage3_param_persistence_threshold": 0}
BF16 = {"bf16": {"enabled": True}}
KINDS = {
    "zero1": {"zero": {"stage": 1}},
    "zero2": {"zero": {"stage": 2}},
    "zero2 offload": {"zero": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
    "zero3": {"zero": {"stage": 3}},
    "zero3 small sub-groups": {"zero": SMALL},
    "zero3 offload": {"zero": {**SMALL, "offload_optimizer": {"device": "cpu"}}},
    "bf16 optimizer": {"zero": {"stage": 1}, **BF16, "data_types": {"grad_accum_dtype": "fp32"}},
    "zero2 bf16": {"zero": {"stage": 2}, **BF16},
    "zero3 bf16": {"zero": SMALL, **BF16},
}


def make_model(seed=0):
    """Layers of odd sizes: borders of ranks are inside of layers, and there is padding."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Embedding(41, 11), nn.Linear(11, 23), nn.LayerNorm(23), nn.Linear(23, 23), nn.Linear(23, 41, bias=False)
    )
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
    return model


def groups_of(model, n_clusters=3):
    """Two layers that are grouped together, one that is not scaled, one with other options, and vectors."""
    named = dict(model.named_parameters())
    return [
        {"params": [named["0.weight"], named["1.weight"]]},
        {"params": [named["3.weight"]], "scaled": False, "weight_decay": 0.02},
        {"params": [named["4.weight"]], "recluster_interval": 3, "n_clusters": min(n_clusters, 2), "lr": 5e-3},
        {"params": [param for param in named.values() if param.dim() == 1], "weight_decay": 0.0},
    ]


def make_optimizer(model, make=SGGAdamW, order=None, **options):
    options = {**OPTIONS, **options, "module": model} if make is SGGAdamW else {"lr": OPTIONS["lr"], **options}
    groups = groups_of(model, options.get("n_clusters", 3))
    return make([groups[place] for place in order or range(len(groups))], **options)


def make_engine(zero, seed=0, universal=False, model=None, **options):
    """An engine and the optimizer inside."""
    deepspeed = deepspeed_module()
    model = make_model(seed) if model is None else model
    optimizer = make_optimizer(model, **options)
    # DeepSpeed clips at 1 unless told not to; one process without it does not.
    more = {**KINDS[zero], "gradient_clipping": 0.0, "checkpoint": {"load_universal": universal}}
    # A new dict: DeepSpeed keeps it and writes into it.
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=copy.deepcopy(config(**more)))
    return engine, optimizer


def next_token_loss(model, batch):
    logits = model(batch[:, :-1]).float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def train(engine, optimizer, rank, world_size, start, end):
    """Losses of steps `start` to `end` - 1, and which layers were grouped in which of them."""
    losses, grouped, last = [], {}, getattr(optimizer, "grouping_report", None)
    for step, batch in enumerate(batches(end, start=start), start + 1):
        loss = next_token_loss(engine, batch.chunk(world_size)[rank])
        engine.backward(loss)
        engine.step()
        torch.distributed.all_reduce(loss)
        losses.append(loss.item() / world_size)
        report = getattr(optimizer, "grouping_report", None)
        if report is not last:
            grouped[step], last = [layer.name for layer in report.layers], report
    return losses, grouped


def flat_tensors(engine):
    """What DeepSpeed gives the optimizer in place of the parameters."""
    names = ["fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"]
    return next(getattr(engine.optimizer, name) for name in names if hasattr(engine.optimizer, name))


def options_of(optimizer):
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def snapshot(engine, optimizer):
    """All that is on this rank, as it is there."""
    flats = flat_tensors(engine)
    return {
        "fp32": [flat.detach().clone() for flat in flats],
        "state": [{key: value.clone() for key, value in optimizer.state.get(flat, {}).items()} for flat in flats],
        "options": options_of(optimizer),
        "kind": type(engine.optimizer).__name__,
        "stage": engine.zero_optimization_stage(),
    }


def whole(engine):
    """Weights and moments as whole tensors, which are the same for any number of ranks."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    params = dict(engine.module.named_parameters())
    moments = {
        (name, key): safe_get_full_optimizer_state(param, key).clone()
        for name, param in params.items()
        for key in ("exp_avg", "exp_avg_sq")
    }
    return moments | {(name, "fp32"): safe_get_full_fp32_param(param).clone() for name, param in params.items()}


def same_tensors(before, after):
    """Whether weights and state of two snapshots are equal bit for bit; there may be NaN in DeepSpeed's padding."""

    def same(a, b):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())

    return all(same(a, b) for a, b in zip(before["fp32"], after["fp32"], strict=True)) and all(
        a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        for a, b in zip(before["state"], after["state"], strict=True)
    )


def is_same(before, after):
    """Whether two snapshots are equal, with the options of the param groups."""
    return same_tensors(before, after) and before["options"] == after["options"]


@contextlib.contextmanager
def said():
    """Texts of the warnings for users; torch and DeepSpeed give them of other kinds."""
    texts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts.extend(str(one.message) for one in caught if one.category is UserWarning)


def refusal(attempt):
    """What an attempt raised, as text, or nothing."""
    try:
        attempt()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def make_universal(folder, tag, rank):
    """Convert a checkpoint, as `python -m deepspeed.checkpoint.ds_to_universal` does."""
    from deepspeed.checkpoint import ds_to_universal

    torch.distributed.barrier()
    if rank == 0:
        options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
        paths = {"input_folder": f"{folder}/{tag}", "output_folder": f"{folder}/{tag}_universal"}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(argparse.Namespace(**paths, **options, inject_missing_state=True))
    torch.distributed.barrier()
