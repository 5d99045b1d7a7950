"""Extend `transformers.trainer`: the registry's optimizers, and the callbacks that serve them.

Only public parts are wrapped: the static method `Trainer.get_optimizer_cls_and_kwargs`, which every version of
transformers since 4.46 has and other trainers call too, the constructor, and `train`.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from gradscale.integrations.alsdgc_attach import attach_callback
from gradscale.integrations.training_args_patch import constructor_options, entry_of
from gradscale.options import DEFERRED
from gradscale.registry import OptimizerEntry


def patch_trainer(module: ModuleType) -> None:
    """Wrap `module.Trainer`'s choice of optimizer, its constructor and `train`. Calling it again changes nothing.

    Raises:
        AttributeError, ImportError: this transformers looks different. Nothing has been changed then.
    """
    from gradscale.integrations.callback import ScaleCallback

    trainer = module.Trainer
    choose, construct = trainer.get_optimizer_cls_and_kwargs, trainer.__init__
    train: Any = getattr(trainer, "train", None)  # ALSDGCCallback says so itself where it was not attached
    if getattr(choose, "_gradscale", False):
        return

    @functools.wraps(choose)
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        entry = entry_of(args)
        return choose(args, model) if entry is None else optimizer_class_and_kwargs(args, entry, model)

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        callbacks = self.callback_handler.callbacks
        if not any(isinstance(callback, ScaleCallback) for callback in callbacks):
            # First: what it adds to the logs must be there when TensorBoard and its kind read them.
            callbacks.insert(0, ScaleCallback())
        attach_callback(self)

    def train_with_callbacks(self: Any, *args: Any, **kwargs: Any) -> Any:
        attach_callback(self)  # one that was added, or asked for, since
        return train(self, *args, **kwargs)

    get_optimizer_cls_and_kwargs._gradscale = True  # type: ignore[attr-defined]  # our own mark
    trainer.get_optimizer_cls_and_kwargs = staticmethod(get_optimizer_cls_and_kwargs)
    trainer.__init__ = __init__
    if train is not None:
        trainer.train = functools.wraps(train)(train_with_callbacks)


def optimizer_class_and_kwargs(args: Any, entry: OptimizerEntry, model: Any = None) -> tuple[type[Any], dict[str, Any]]:
    """Return the class of `entry` and the keywords to call it with, beside the parameter groups.

    The keywords never contain `model`, `params` or `optimizer_dict`: the Trainer takes these out and reads them as
    parameter groups.

    Args:
        args: a `TrainingArguments`.
        entry: the optimizer that `args.optim` names.
        model: the model that will be trained; needed for `--optim_target_modules` only.

    Raises:
        OptionError: an option is unknown, malformed or out of range.
        ValueError: target modules were given without a model.
    """
    kwargs = constructor_options(args, entry)
    # Without --max_steps the length depends on the data loader; the callback supplies it when training begins.
    kwargs["total_steps"] = args.max_steps if args.max_steps > 0 else DEFERRED
    if args.optim_target_modules is not None:
        if model is None:
            raise ValueError(
                f"--optim_target_modules={args.optim_target_modules!r} needs the model, but this trainer asked for "
                f"the optimizer {entry.name} without one"
            )
        kwargs["target_modules"] = args.optim_target_modules
    if model is not None:
        kwargs["module"] = model
    return entry.load(), kwargs
