"""Make the registry's names known to transformers: one mechanism behind all doors.

Standard library only, and cheap: every `import torch` comes through here. The parts that touch transformers are
imported when transformers' own modules have been.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType

from gradscale.integrations.import_hook import when_imported

_lock = threading.RLock()
_failures: dict[str, Exception] = {}
_explicit = False


def install(*, explicit: bool) -> None:
    """Extend modules of transformers and accelerate, now or as soon as they are imported.

    A transformers that cannot be extended still imports: the failure is kept in `failures()`.

    Args:
        explicit: the user asked for gradscale, so a failure is worth a warning (given for past failures too). The door
            that every `import torch` opens passes False and stays silent.
    """
    global _explicit
    with _lock:
        if explicit and not _explicit:
            _explicit = True
            for name, error in _failures.items():
                _warn(name, error)
    when_imported("transformers.training_args", _extend_training_args)
    when_imported("transformers.trainer", _extend_trainer)
    when_imported("accelerate.accelerator", _extend_accelerator)


def extend_again() -> None:
    """Make names known to transformers that have joined the registry since it was imported.

    Argument parsers that are there already do not take them.
    """
    module = sys.modules.get("transformers.training_args")
    if module is not None and hasattr(module, "TrainingArguments"):
        _extend_training_args(module)


def failures() -> Mapping[str, Exception]:
    """Return the modules that could not be extended, with the reason."""
    return MappingProxyType(_failures)


def _extend_training_args(module: ModuleType) -> None:
    def extend() -> None:
        from gradscale.integrations.training_args_patch import patch_training_args

        patch_training_args(module)

    _guarded(module.__name__, extend)


def _extend_trainer(module: ModuleType) -> None:
    def extend() -> None:
        from gradscale.integrations.sharded_checkpoint import patch_sharded_loading
        from gradscale.integrations.trainer_patch import patch_trainer

        patch_trainer(module)
        patch_sharded_loading(module)

    _guarded(module.__name__, extend)


def _extend_accelerator(module: ModuleType) -> None:
    def extend() -> None:
        from gradscale.integrations.accelerate_patch import patch_accelerator
        from gradscale.integrations.sharded_checkpoint import patch_sharded_loading

        patch_accelerator(module)
        patch_sharded_loading(module)

    _guarded(module.__name__, extend)


def _guarded(name: str, extend: Callable[[], None]) -> None:
    # Runs inside somebody's `import transformers`, which must not break whatever a future version looks like.
    try:
        extend()
    except Exception as error:
        with _lock:
            _failures[name] = error
            if _explicit:
                _warn(name, error)
    else:
        _failures.pop(name, None)


def _warn(name: str, error: Exception) -> None:
    package = name.partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", "of unknown version")
    lost = "Its --optim names are not available" if package == "transformers" else "Do not offload it with ZeRO"
    warnings.warn(
        f"gradscale could not extend {name} of {package} {version}: {type(error).__name__}: {error}. "
        f"{lost}; optimizers imported from gradscale still work.",
        RuntimeWarning,
        stacklevel=4,
    )
