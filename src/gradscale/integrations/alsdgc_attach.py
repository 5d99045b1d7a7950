"""Bring a Trainer and its `ALSDGCCallback` together; costs nothing where there is none."""

from __future__ import annotations

import sys
from typing import Any

from gradscale.integrations.alsdgc_options import parse_alsdgc

_MODULE = "gradscale.integrations.alsdgc_callback"


def attach_callback(trainer: Any) -> None:
    """Attach a Trainer's `ALSDGCCallback`, if it has one; make one if its arguments ask for it.

    Raises:
        ValueError: it has several.
    """
    options = parse_alsdgc(getattr(getattr(trainer, "args", None), "alsdgc", None))
    if options is None and _MODULE not in sys.modules:
        return  # nobody can have made one
    from gradscale.integrations.alsdgc_callback import ALSDGCCallback

    callbacks = trainer.callback_handler.callbacks
    mine = [callback for callback in callbacks if isinstance(callback, ALSDGCCallback)]
    if not mine and options is not None:
        mine = [ALSDGCCallback(options.pop("mode"), **options)]
        callbacks.append(mine[0])
    if len(mine) > 1:
        raise ValueError(f"{len(mine)} ALSDGCCallbacks would clip the same gradients: keep one")
    for callback in mine:
        callback.attach(trainer)
