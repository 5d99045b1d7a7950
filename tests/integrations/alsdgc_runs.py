"""A Trainer whose batches can be made bad at chosen steps."""

import copy
import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
import tiny  # noqa: E402


class BadBatches(Trainer):
    """`factors[i]` multiplies the loss of the i-th batch, `gradients[i]` one parameter's gradient of it."""

    factors, gradients = {}, {}
    batch, hooked = -1, False

    def compute_loss(self, model, *args, **kwargs):
        self.batch += 1
        loss = super().compute_loss(model, *args, **kwargs)
        if not self.hooked:
            self.hooked = True
            self.model.lm_head.weight.register_hook(lambda gradient: gradient * self.gradients.get(self.batch, 1.0))
        return loss * self.factors.get(self.batch, 1.0)


def rows(count=64):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, len(tiny.WORDS), (count, 10), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]


def make(folder, *, factors=None, gradients=None, callbacks=None, skip_batches=0, **kwargs):
    """A Trainer of a tiny model on 64 rows."""
    args = TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "optim": "sgg_adamw",
            "optim_args": "recluster_interval=3",
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "max_steps": 8,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            **kwargs,
        }
    )
    trainer = BadBatches(model=tiny.model(), args=args, train_dataset=rows(), callbacks=callbacks)
    trainer.factors, trainer.gradients, trainer.batch = factors or {}, gradients or {}, skip_batches - 1
    return trainer


def logged(trainer, key):
    """The values of a key in the training logs, in order."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Recorder:
    """Optimizer state, weights and learning rate before and after each optimizer step, for a Trainer."""

    def __init__(self, trainer):
        self.before, self.after = [], []
        callback = type(trainer.callback_handler.callbacks[-1]).__mro__[-2]  # TrainerCallback

        class Watch(callback):
            def on_pre_optimizer_step(me, *args, **kwargs):
                self.before.append(self._now(trainer))

            def on_step_end(me, *args, **kwargs):
                self.after.append(self._now(trainer))

        trainer.add_callback(Watch())

    def _now(self, trainer):
        return copy.deepcopy(
            {
                "weights": trainer.model.state_dict(),
                "optimizer": trainer.optimizer.state_dict(),
                "schedule": trainer.lr_scheduler.state_dict()["last_epoch"],
            }
        )
