"""What each rank does in `test_alsdgc.py`: the Trainer with `--alsdgc`, bad batches on one rank, resumes."""

import math
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gradscale import GradScaler, SGGAdamW
from tests.engines import trainer_engines as engines
from tests.integrations import alsdgc_runs
from tests.integrations.alsdgc_runs import logged

BATCH = 8  # rows on all ranks together
NAN_STEP, SPIKE_STEP = 2, 7  # counted from 0
OPTIONS = {
    "mode": "robust",
    "warmup_steps": 4,
    "warmup_threshold": 0.5,
    "window": 16,
    "reseed_after": 16,
    "reseed_span": 16,
    "max_skips": 0,
}
KEYS = ("loss", "grad_norm", *(f"alsdgc/{key}" for key in ("norm", "threshold", "clipped_norm", "skipped")))


def run(engine, folder, rank, world_size, *, resume=None, done=0, **kwargs):
    """Train 9 steps; the loss of one step is NaN on the last rank only, that of another huge on all."""
    AcceleratorState._reset_state(reset_partial_state=True)
    states = "SHARDED_STATE_DICT"
    factors = {SPIKE_STEP: 300.0} | ({NAN_STEP: math.nan} if rank == world_size - 1 else {})
    trainer = alsdgc_runs.make(
        folder,
        **{
            "per_device_train_batch_size": BATCH // world_size,
            "factors": factors,
            "skip_batches": done,
            "alsdgc": OPTIONS,
            "max_steps": 8 + 1,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            # What engines round differently shall not be multiplied by the default's rate of the embedding.
            "optim_args": "recluster_interval=3,embedding_lr_factor=2",
            "save_strategy": "steps",
            "save_steps": 4,
            **engines.arguments(engine, states),
            **kwargs,
        },
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    controller = trainer.callback_handler.callbacks[0].controller
    return {
        "engine": engines.kind(trainer),
        "logs": {key: logged(trainer, key) for key in KEYS},
        "scales": logged(trainer, "alsdgc/loss_scale"),
        "state": controller.state_dict(),
        "schedule": trainer.lr_scheduler.state_dict()["last_epoch"],
        "weights": engines.weights(trainer),
        "DeepSpeed": [getattr(trainer.optimizer.optimizer, name, None) for name in ("clip_grad", "loss_scale")],
    }


def plain_loop(engine, rank):
    """torch alone and `gradscale.GradScaler`; steps 1, 2: a NaN loss on rank 1; 3, 4: overflows."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    if engine == "fsdp2":
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    else:
        net = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = SGGAdamW(net.parameters(), lr=1e-2, recluster_interval=2)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    found = []
    for step in range(6):
        optimizer.zero_grad()
        inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * step + rank))
        # Added, it leaves the gradients finite: only the loss tells, and only rank 1.
        bad = math.nan if rank == 1 and step in (1, 2) else 0.0
        scaler.scale(net(inputs).square().mean() + bad).backward()
        if step in (3, 4) and (rank == 1 or engine == "ddp"):
            for param in net.parameters():
                grad = param.grad.to_local() if isinstance(param.grad, DTensor) else param.grad
                grad.fill_(math.inf)
        if step % 2:
            scaler.clip_grad_norm_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        found.append((scaler.decision.reason, scaler.get_scale(), str(scaler.norm)))
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]
    return {"found": found, "weights": [weight.detach().clone() for weight in whole]}


def all_cases(rank, world_size, engine, folder):
    """A whole run, a resume from its middle, and with a p-norm of infinity."""
    folder = Path(folder)
    results = {"run": run(engine, folder / "run", rank, world_size)}
    results["resumed"] = run(
        engine, folder / "resumed", rank, world_size, resume=folder / "run" / "checkpoint-4", done=4
    )
    if engine == "zero2":
        config = engines.arguments(engine, "")["deepspeed"]
        half = {"fp16": {"enabled": True, "initial_scale_power": 14, "min_loss_scale": 1, "hysteresis": 1}}
        for name, section in (("fp16", half), ("bf16", {"bf16": {"enabled": True}})):
            kwargs = {name: True, "deepspeed": {**config, **section}}
            results[name] = run(engine, folder / name, rank, world_size, **kwargs)
            results[f"{name} resumed"] = run(
                *(engine, folder / f"{name} resumed", rank, world_size),
                **{**kwargs, "resume": folder / name / "checkpoint-8", "done": 8},
            )
    if engine in ("ddp", "fsdp2"):
        results["scaler"] = plain_loop(engine, rank)
    largest = {**OPTIONS, "norm_type": "inf"}
    if not engine.startswith("zero"):  # DeepSpeed knows the 2-norm alone
        results["inf"] = run(engine, folder / "inf", rank, world_size, alsdgc=largest, save_strategy="no")
    return results
