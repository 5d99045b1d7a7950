"""One run of a study with the transformers Trainer: one network, one method, one seed, to its accuracy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from gradscale.training.errors import ConfigError
from gradscale.training.interrupt import Interrupt
from gradscale.training.timing import StepTimer
from gradscale.vision.curve import evaluations, summarize
from gradscale.vision.images import ImageData, Standardize, TrainingImages, ValidationImages
from gradscale.vision.resnet import build_resnet

Result = dict[str, Any]


def run_cell(
    model: str,
    arguments: Any,
    images: ImageData,
    *,
    target_accuracy: float,
    checkpoint: Path | None,
    interrupt: Interrupt,
) -> Result:
    """Train and evaluate one network.

    Args:
        model: its name in `DEPTHS`.
        arguments: `TrainingArguments`, with the seed of weights and images.
        images: the data.
        target_accuracy: in percent; the first evaluated step that reaches it is reported.
        checkpoint: where to continue, or None.
        interrupt: entered by the caller; a signal ends the run after the step.

    Returns:
        What `result.json` holds of the run: see `docs/vision.md`.

    Raises:
        ConfigError: an option of the optimizer or the checkpoint turns out to be unusable.
    """
    began = time.monotonic()
    set_seed(arguments.seed)
    network = build_resnet(model, classes=images.classes, channels=images.channels, seed=arguments.seed)
    standardize = Standardize(images.train)
    length = arguments.max_steps * arguments.train_batch_size * arguments.gradient_accumulation_steps
    timer = StepTimer()
    try:
        trainer: Any = _StudyTrainer(
            model=network,
            args=arguments,
            train_dataset=TrainingImages(
                images.train, standardize, length=length, seed=arguments.seed, augment=images.augment
            ),
            eval_dataset=ValidationImages(images.validation, standardize),
            data_collator=_as_it_is,
            compute_metrics=_accuracy,
            preprocess_logits_for_metrics=_predictions,
            callbacks=[timer, interrupt, _EvaluateWhenDue()],
        )
        trainer.create_optimizer()
    except (ValueError, ImportError) as error:  # the optimizer's options, and libraries that are not installed
        raise ConfigError(str(error)) from error
    trainer.remove_callback(PrinterCallback)  # a line per run is enough
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        if checkpoint is not None and not timer.began:
            raise ConfigError(f"the checkpoint {str(checkpoint)!r} does not fit this run: {error}") from error
        raise
    state = trainer.state
    finished = state.global_step >= state.max_steps
    if finished and not any(entry["step"] == state.global_step for entry in evaluations(state.log_history)):
        trainer.evaluate()  # left out by `Interrupt`, or by a Trainer that evaluates every so many steps and no more
    result = summarize(state.log_history, target_accuracy=target_accuracy)
    if not finished:
        result["status"] = "interrupted"
    return {
        **result,
        "global_step": state.global_step,
        "max_steps": state.max_steps,
        "parameters": sum(param.numel() for param in network.parameters()),
        "milliseconds_per_step": 1000 * timer.step_seconds / timer.steps if timer.steps else None,
        "optimizer_share": timer.optimizer_share,
        "seconds": time.monotonic() - began,
    }


class _StudyTrainer(Trainer):  # type: ignore[misc]  # transformers is skipped by the type checker
    def get_train_dataloader(self) -> Any:
        """Return the batches in the order of the data set, which is itself a random one."""
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)


class _EvaluateWhenDue(TrainerCallback):  # type: ignore[misc]  # transformers is skipped by the type checker
    """Evaluates also after the step at which a signal stops the run, if it is due there.

    `Interrupt` leaves it out; the continued run would lack this point of its curve and could report a later step than
    the one that reached the target.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_training_stop and state.global_step % state.eval_steps == 0:
            control.should_evaluate = True


def _as_it_is(batch: Any) -> Any:
    """The data sets make whole batches."""
    return batch


def _predictions(logits: Any, labels: Any) -> Any:
    return logits.argmax(dim=-1)


def _accuracy(evaluation: Any) -> dict[str, float]:
    return {"accuracy": float((evaluation.predictions == evaluation.label_ids).mean())}
