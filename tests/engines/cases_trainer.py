"""What each rank does in `test_trainer.py`: runs of the Trainer, their deaths and their resumes."""

import os
import re
import signal
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from accelerate.state import AcceleratorState
from torch.distributed.checkpoint.api import CheckpointException
from transformers import Trainer, TrainingArguments

from gradscale.optim.sgg_scaler import SGGScaler
from gradscale.training.output_folder import find_checkpoints
from tests.engines import trainer_engines as engines

sys.path.insert(0, str(Path(__file__).parents[1] / "integrations" / "scripts"))
import tiny  # noqa: E402

# Labels that are kept have to come through every checkpoint; an adapter's runs have the default, which keeps none.
KEPT = "recluster_interval=0.25,scale_decay=0.5,n_clusters=3,momentum_sign=signed,labels=frozen,embedding_lr_factor=8"
STEPS, BATCH = 12, 12  # of one epoch; BATCH rows on all ranks together
SHARDED, FULL = "SHARDED_STATE_DICT", "FULL_STATE_DICT"
# Of FSDP1 torch itself cannot make the FULL_STATE_DICT of a model, as accelerate asks for it, on CPU.
WHOLE_FILES = ("fsdp2",)
# DeepSpeed's same code as for another engine here: one run and its resume.
BRIEF = ("zero1", "zero3 offload")


def rows():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, len(tiny.WORDS), (STEPS * BATCH, 10), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]


def make_trainer(engine, folder, world_size, *, states=SHARDED, model=tiny.model, **kwargs):
    """A Trainer as a user makes it; the fractional interval refers to a run of so many epochs."""
    AcceleratorState._reset_state(reset_partial_state=True)
    args = TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "optim": "sgg_adamw",
            "optim_args": KEPT,
            "learning_rate": 1e-3,
            "warmup_steps": 2,  # the first step has a learning rate of 0, and is a step
            "weight_decay": 0.1,
            "num_train_epochs": 1,
            "per_device_train_batch_size": BATCH // world_size,
            "save_steps": 4,
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            **engines.arguments(engine, states),
            **kwargs,
        }
    )
    return Trainer(args=args, model=model(), train_dataset=rows())


def run(engine, folder, world_size, *, resume=None, **kwargs):
    """Train, from a checkpoint if one is given; return what is compared between runs."""
    trainer = make_trainer(engine, folder, world_size, **kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    optimizer = engines.innermost(trainer.optimizer)
    history = trainer.state.log_history
    report = getattr(optimizer, "grouping_report", None)
    return {
        "engine": engines.kind(trainer),
        "optimizer": type(optimizer).__name__,
        "losses": {entry["step"]: entry["loss"] for entry in history if "loss" in entry},
        "groupings": [entry["step"] for entry in history if "sgg/scale_mean" in entry],
        "total_steps": {group.get("total_steps") for group in optimizer.param_groups},
        "layers": [layer.name for layer in report.layers] if report else [],
        "weights": engines.weights(trainer),
        "state": engines.state(optimizer),
        "warnings": [
            str(one.message)
            for one in caught
            if one.category in (UserWarning, RuntimeWarning)
            and "/torch/distributed/" not in one.filename
            and "NO_SHARD" not in str(one.message)
        ],
    }


def refused(engine, folder, world_size, **kwargs):
    """Message of the error with which a run ends."""
    try:
        run(engine, folder, world_size, **kwargs)
    except (Exception, CheckpointException) as error:  # torch's own is a BaseException
        return "".join(traceback.format_exception(error))
    return ""


def lora():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(tiny.model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


LORA = {"model": lora, "optim_target_modules": "q_proj", "optim_args": "recluster_interval=0.25"}


def uninterrupted(rank, world_size, engine, folder):
    """Whole runs, which save at steps 4, 8 and 12."""
    folder = Path(folder)
    results = {"run": run(engine, folder / "run", world_size)}
    if engine in BRIEF:
        return results
    results["adamw"] = run(engine, folder / "adamw", world_size, optim="adamw_torch", optim_args=None)
    if engine == "fsdp1 flat":
        results["lora"] = refused(engine, folder / "lora", world_size, **LORA)
    else:
        results["lora"] = run(engine, folder / "lora", world_size, **LORA)
    if engine == "zero2":
        replaced = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
        results["replaced"] = refused(engine, folder / "replaced", world_size, deepspeed=replaced)
    if engine in WHOLE_FILES:
        results["full"] = run(engine, folder / "full", world_size, states=FULL)
        results["adamw full"] = run(
            engine, folder / "adamw full", world_size, states=FULL, optim="adamw_torch", optim_args=None
        )
    return results


def killed_in_a_step(rank, world_size, engine, folder):
    """Rank 1 is killed at step 9, in the middle of a grouping, when the others wait for its counts."""
    observe = SGGScaler.observe

    def dying(self, layers, clock):
        if rank == 1 and clock == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return observe(self, layers, clock)

    SGGScaler.observe = dying
    run(engine, folder, world_size)


def killed_in_a_checkpoint(rank, world_size, engine, folder):
    """A rank that writes is killed in the middle of the optimizer's part of the checkpoint of step 8."""
    save, write = torch.save, dcp.FileSystemWriter.write_data

    def dying_save(value, path, *args, **kwargs):
        save(value, path, *args, **kwargs)
        if re.search(r"checkpoint-8/(optimizer\.pt|global_step8/zero_pp_rank_1_mp_rank_00_optim)", str(path)):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(self, *args, **kwargs):
        if rank == 1 and "checkpoint-8/optimizer_0" in str(self.path):
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, *args, **kwargs)

    torch.save, dcp.FileSystemWriter.write_data = dying_save, dying_write
    run(engine, folder, world_size)


def resumed(rank, world_size, engine, folder):
    """Every resume on the same number of ranks, in new processes."""
    folder, new = Path(folder), Path(folder) / "resumed"
    results = {"run": run(engine, new / "run", world_size, resume=folder / "run" / "checkpoint-4")}
    if engine in BRIEF:
        return results
    last = folder / "run" / "checkpoint-8"
    results["longer"] = run(engine, new / "longer", world_size, resume=last, num_train_epochs=2)
    if not engine.startswith("fsdp1"):  # with FSDP1 the Trainer brings no adapter back, whatever the optimizer
        results["lora"] = run(engine, new / "lora", world_size, resume=folder / "lora" / "checkpoint-8", **LORA)
    for how in ("step", "checkpoint"):
        last = find_checkpoints(folder / f"killed in a {how}")[-1]
        results[f"killed in a {how}"] = {
            "from": last.name,
            **run(engine, new / how, world_size, resume=last),
        }
    adamw = folder / "adamw" / "checkpoint-8"
    if engine in WHOLE_FILES:
        results["full"] = run(engine, new / "full", world_size, resume=folder / "full" / "checkpoint-4", states=FULL)
        results["adamw full"] = run(
            engine, new / "adamw full", world_size, resume=folder / "adamw full" / "checkpoint-8", states=FULL
        )
    results["adamw"] = run(engine, new / "adamw", world_size, resume=adamw)
    return results


def resumed_elsewhere(rank, world_size, engine, folder):
    """Checkpoints of two ranks on another number of ranks."""
    folder, new = Path(folder), Path(folder) / f"on {world_size}"
    checkpoint = folder / "run" / "checkpoint-4"
    if engine.startswith("zero"):
        return {"run": refused(engine, new / "run", world_size, resume=checkpoint)}
    results = {"run": run(engine, new / "run", world_size, resume=checkpoint)}
    if engine in WHOLE_FILES:
        full = folder / "full" / "checkpoint-4"
        results["full"] = run(engine, new / "full", world_size, resume=full, states=FULL)
    return results
