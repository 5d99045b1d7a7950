"""Extend `accelerate.accelerator`: it must not put DeepSpeedCPUAdam in the place of one of our optimizers.

With ZeRO's optimizer offload, `Accelerator.prepare` replaces any optimizer by DeepSpeedCPUAdam, without a word, unless
the DeepSpeed configuration says `"zero_force_ds_cpu_optimizer": false`.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

_NAME = "map_pytorch_optim_to_deepspeed"


def patch_accelerator(module: ModuleType) -> None:
    """Make accelerate refuse to replace our optimizers. Calling it again changes nothing."""
    replace = getattr(module, _NAME, None)
    if replace is None or getattr(replace, "_gradscale", False):
        return  # without DeepSpeed there is nothing to replace by

    @functools.wraps(replace)
    def map_pytorch_optim_to_deepspeed(optimizer: Any) -> Any:
        from gradscale.optim.scaled import ScaledOptimizer

        if isinstance(optimizer, ScaledOptimizer):
            raise ValueError(
                f"ZeRO's optimizer offload would replace {type(optimizer).__name__} by DeepSpeedCPUAdam: set "
                '"zero_force_ds_cpu_optimizer": false in the DeepSpeed configuration (a JSON file, named by '
                "deepspeed_config_file in an accelerate configuration) to keep it"
            )
        return replace(optimizer)

    map_pytorch_optim_to_deepspeed._gradscale = True  # type: ignore[attr-defined]  # our own mark
    setattr(module, _NAME, map_pytorch_optim_to_deepspeed)
