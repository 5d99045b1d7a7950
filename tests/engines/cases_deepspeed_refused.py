"""What each rank does in `test_deepspeed.py` where a step has to change nothing: overflows and refusals."""

import dataclasses
from contextlib import contextmanager

import torch

from gradscale.sharding import deepspeed as sharding
from tests.engines.cases_deepspeed import FP16, deepspeed_module, facts, next_token_loss, rows_of, start, trainings
from tests.optim.training import batches

OVERFLOWS = {
    **{kind: (kind, {}) for kind in ("zero2", "zero2 offload", "zero3 small", "zero3 offload", "bf16 optimizer")},
    **{f"{kind} in float16": (kind, FP16) for kind in ("zero2", "zero3 small")},
}


def overflow(kind, rank, world_size, more):
    """Train 8 steps, of which the gradients of one rank overflow in steps 0 and 4.

    Step 4 would have been the first to group.
    """
    engine, layers = start(kind, more=more)
    unchanged, grouped = [], []
    for index, batch in enumerate(batches(8)):
        before = layers.snapshot()
        loss = next_token_loss(engine, rows_of(batch, rank, world_size))
        engine.backward(loss * float("inf") if index in (0, 4) and rank == world_size - 1 else loss)
        engine.step()
        unchanged.append(_same(before, layers.snapshot()))
        report = layers.optimizer.grouping_report
        if report is not None and not grouped:
            layers.clock = report.step
            layers.group_again(rank)
            grouped = [index, report.step]
    return {
        "unchanged": unchanged,
        "grouped": grouped,
        "wrong": layers.wrong,
        "counts": {int(state["step"]) for state in layers.optimizer.state.values()},
        "engine": facts(layers),
    }


def attempt(kind, rank, world_size, change=None, segments=None):
    """Step twice after a change; return the errors, and whether nothing was changed.

    Args:
        kind: of ZeRO.
        rank: of this process.
        world_size: number of ranks.
        change: called with the engine before the step.
        segments: changes the segments of layers that the last rank finds.
    """
    engine, layers = start(kind)
    if change is not None:
        change(engine)
    before = layers.snapshot()
    engine.backward(next_token_loss(engine, rows_of(next(batches(1)), rank, world_size)))
    with _changed_segments(segments if rank == world_size - 1 else None):
        # DeepSpeed leaves all in place for another call, if a call fails.
        errors = [_error_of(engine.step), _error_of(layers.optimizer.step)]
    return errors, _same(before, layers.snapshot()), len(layers.optimizer.state)


def _error_of(step):
    try:
        step()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _same(before, after):
    # Bytes: padding may hold anything, NaN as well.
    return [tensor.reshape(-1).view(torch.uint8).tolist() for tensor in before] == [
        tensor.reshape(-1).view(torch.uint8).tolist() for tensor in after
    ]


@contextmanager
def _changed_segments(change):
    real = sharding.Segment
    if change is not None:
        sharding.Segment = lambda *args: change(real(*args))
    try:
        yield
    finally:
        sharding.Segment = real


def _marked(**marks):
    """Settings of DeepSpeed as gradscale finds them in `step()`. DeepSpeed itself does not go by them."""

    def change(engine):
        engine.basic_optimizer.register_step_pre_hook(lambda *_: vars(engine.optimizer).update(marks))

    return change


def _other_weights(name, refresh=False):
    """Change a layer of the model after DeepSpeed copied it."""

    def change(engine):
        param = dict(engine.module.named_parameters())[name]
        with deepspeed_module().zero.GatheredParameters([param], modifier_rank=0), torch.no_grad():
            param.add_(1)
        if refresh:
            engine.optimizer.refresh_fp32_params()

    return change


def _other_storage(engine):
    """Move a layer out of the buffer that DeepSpeed laid it into."""
    engine.module.head.weight.data = engine.module.head.weight.data.clone()


def _shifted(segment):
    return dataclasses.replace(segment, offset=segment.offset + 1)


def _shorter(segment):
    return dataclasses.replace(segment, length=max(0, segment.length - 1))


ATTEMPTS = {
    "NVMe optimizer": ("zero3 small", _marked(swap_optimizer=True)),
    "NVMe parameters": ("zero3 offload", _marked(fp16_partitioned_groups_flat=[None] * 9)),
    "partial offload": ("zero3 offload", _marked(partial_offload=0.5)),
    "ZenFlow": ("zero3 small", _marked(zenflow=True)),
    "float16 autocast": ("zero3 small", _marked(torch_autocast_gradscaler=object())),
    "unknown sub-group": ("zero3 small", _marked(fp32_partitioned_groups_flat=[])),
    "other storage": ("zero2", _other_storage),
    **{
        f"{name} segments, {kind}": (kind, None, segments)
        for kind in ("zero2", "zero3 small", "bf16 optimizer")
        for name, segments in (("shifted", _shifted), ("shorter", _shorter))
    },
    **{
        f"other weights of {name}, {kind}": (kind, _other_weights(name))
        for kind in ("zero2", "zero3 offload", "bf16 optimizer")
        for name in ("embed.weight", "head.weight")
    },
    **{
        f"refreshed weights, {kind}": (kind, _other_weights("head.weight", refresh=True))
        for kind in ("zero2", "zero3 offload", "bf16 optimizer")
    },
    "as it is": ("zero2",),
}


def everything(rank, world_size):
    """All cases of one launch, with those of `cases_deepspeed.py`."""
    results = trainings(rank, world_size)
    if world_size == 2:
        results["overflow"] = {name: overflow(kind, rank, world_size, more) for name, (kind, more) in OVERFLOWS.items()}
    if world_size in (1, 3):
        results["refused"] = {name: attempt(kind, rank, world_size, *more) for name, (kind, *more) in ATTEMPTS.items()}
    return results
