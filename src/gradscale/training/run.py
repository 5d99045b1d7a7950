"""One run: one optimizer from the first step, or from a checkpoint, to its results."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, default_data_collator, set_seed

from gradscale.data.examples import without_padding
from gradscale.integrations.gradient_norms import GradientNormCallback
from gradscale.training.adapters import build_adapted_model, discard_base
from gradscale.training.arguments import TrainArguments
from gradscale.training.datasets import Blocks
from gradscale.training.errors import ConfigError
from gradscale.training.files import read_json, write_json
from gradscale.training.interrupt import Interrupt
from gradscale.training.lines_file import read_lines
from gradscale.training.model import build_model
from gradscale.training.output_folder import RUN, SCALES
from gradscale.training.scale_log import ScaleLog
from gradscale.training.timing import StepTimer, inner_optimizer, state_bytes

Result = dict[str, Any]


def train(
    arguments: TrainArguments,
    trainer_arguments: Any,
    *,
    blocks: Blocks,
    tokenizer: Any,
    checkpoint: Path | None,
    interrupt: Interrupt,
) -> Result:
    """Train, evaluate and save one model.

    Args:
        arguments: the model to build.
        trainer_arguments: a `TrainingArguments`; its `output_dir` is the run's folder and its seed that of the weights.
        blocks: training and validation data.
        tokenizer: saved beside the model.
        checkpoint: where to continue, or None.
        interrupt: entered by the caller; a signal ends the run after the step.

    Returns:
        What `run.json` holds: see `docs/train.md`.

    Raises:
        ConfigError: the model, the checkpoint or an option turns out to be unusable.
    """
    folder = Path(trainer_arguments.output_dir)
    began = time.monotonic()
    earlier = _earlier_seconds(folder, checkpoint)
    # Every run starts from the same weights, whatever has used random numbers before it.
    set_seed(trainer_arguments.seed)
    if arguments.lora is None:
        model = build_model(arguments, tokenizer)
    else:
        model = build_adapted_model(arguments, tokenizer, trainer_arguments, folder=folder, checkpoint=checkpoint)
    # Before an engine shards them.
    sizes = {name: (_numel(param), param.requires_grad) for name, param in model.named_parameters()}
    timer = StepTimer()
    norms = [GradientNormCallback()] if arguments.log_gradient_norms else []
    try:
        trainer: Any = Trainer(
            model=model,
            args=trainer_arguments,
            train_dataset=blocks.train,
            eval_dataset=blocks.validation,
            data_collator=default_data_collator if arguments.packing else _collate_documents,
            processing_class=tokenizer,
            callbacks=[timer, ScaleLog(folder), interrupt, *norms],
        )
        # Made for its errors alone: FSDP1 wants the optimizer made after the model is wrapped, which the Trainer does.
        trainer.create_optimizer()
        trainer.optimizer = None
    except (ValueError, ImportError) as error:
        # The optimizer's options and target modules, and libraries that are not installed.
        if checkpoint is None and trainer_arguments.process_index == 0:
            discard_base(folder)
        raise ConfigError(str(error)) from error
    if trainer.is_world_process_zero():
        # From now on the folder says what it holds, whatever ends the run.
        record = {} if checkpoint is None else read_json(folder / RUN) or {}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN, {**record, "optim": _optim_name(trainer_arguments), "status": "running"})
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        if checkpoint is not None and not timer.began:
            raise ConfigError(f"resume_from_checkpoint={str(checkpoint)!r} does not fit this run: {error}") from error
        raise
    state = trainer.state
    metrics = {} if interrupt.signal is not None else _evaluate(trainer, blocks)
    result = _result(trainer, timer, metrics, interrupted=interrupt.signal is not None)
    result |= _state_size(trainer, sizes)
    result["wall_seconds"] = earlier + time.monotonic() - began
    if trainer.is_world_process_zero():
        trainer.save_state()
        rows = read_lines(folder / SCALES)
        result["scales"] = rows[-1] if rows else None
        write_json(folder / RUN, result)
    if interrupt.signal is None and state.global_step > 0:
        trainer.save_model()
    return result


def _collate_documents(examples: list[dict[str, Any]]) -> dict[str, Any]:
    return without_padding(default_data_collator(examples))


def _evaluate(trainer: Any, blocks: Blocks) -> Mapping[str, float]:
    """Return the validation metrics of the final weights, which the last periodic evaluation may have measured."""
    if blocks.validation is None:
        return {}
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry:
            if entry["step"] == trainer.state.global_step and not trainer.args.load_best_model_at_end:
                return dict(entry)
            break
    return dict(trainer.evaluate())


def _result(trainer: Any, timer: StepTimer, metrics: Mapping[str, float], *, interrupted: bool) -> Result:
    arguments, state = trainer.args, trainer.state
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    train_loss = losses[-1] if losses else None
    validation_loss = metrics.get("eval_loss")
    known = [loss for loss in (train_loss, validation_loss) if loss is not None]
    diverged = any(not math.isfinite(loss) for loss in known)
    data = trainer.train_dataset
    tokens = getattr(data, "tokens_per_example", data.block_size)
    tokens *= arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    status = "interrupted" if interrupted else "diverged" if diverged else "finished"
    return {
        "optim": _optim_name(arguments),
        "status": status,
        "global_step": state.global_step,
        "max_steps": state.max_steps,
        "train_loss": train_loss,
        "validation_loss": validation_loss,
        "perplexity": None if validation_loss is None else perplexity(validation_loss),
        "tokens_per_second": tokens * timer.steps / timer.step_seconds if timer.step_seconds else None,
        "optimizer_share": timer.optimizer_share,
        "tokens": round(tokens * state.global_step),
        "seed": arguments.seed,
        "learning_rate": arguments.learning_rate,
    }


def _state_size(trainer: Any, sizes: Mapping[str, tuple[int, bool]]) -> Result:
    """Numbers of parameters, and the bytes of optimizer state that this rank keeps for each of those trained."""
    optimizer = inner_optimizer(trainer.optimizer)
    trained = sum(numel for numel, requires_grad in sizes.values() if requires_grad)
    return {
        "optimizer_state_bytes_per_parameter": state_bytes(optimizer) / trained if optimizer and trained else None,
        "parameters": sum(numel for numel, _ in sizes.values()),
        "trained_parameters": trained,
    }


def _numel(param: Any) -> int:
    quantized = getattr(param, "quant_state", None)
    if quantized is not None:  # bitsandbytes packs two 4-bit weights into an element
        return int(quantized.shape.numel())
    # DeepSpeed's zero.Init leaves an empty placeholder and keeps the real size here.
    return int(getattr(param, "ds_numel", param.numel()))


def _optim_name(trainer_arguments: Any) -> str:
    return str(getattr(trainer_arguments.optim, "value", trainer_arguments.optim))


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _earlier_seconds(folder: Path, checkpoint: Path | None) -> float:
    """Return the wall time of the part of the run before `checkpoint`, where the interrupted run noted it."""
    record = read_json(folder / RUN)
    if (
        checkpoint is None
        or not isinstance(record, dict)
        or checkpoint.name != f"checkpoint-{record.get('global_step')}"
    ):
        return 0.0
    return float(record.get("wall_seconds") or 0.0)
