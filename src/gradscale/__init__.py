"""Gradient-scaling optimizers for PyTorch and the Hugging Face Trainer.

Importing the package makes `--optim sgg_adamw` and its siblings known to transformers. The names below load torch on
first use, not before.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from gradscale.integrations import registration

if TYPE_CHECKING:
    from gradscale.adapter.dgs import DGS as DGS
    from gradscale.adapter.sgg import SGG as SGG
    from gradscale.amp.grad_scaler import GradScaler as GradScaler
    from gradscale.control import ALSDGC as ALSDGC
    from gradscale.integrations.alsdgc_callback import ALSDGCCallback as ALSDGCCallback
    from gradscale.integrations.gradient_norms import GradientNormCallback as GradientNormCallback
    from gradscale.optim.dgs import DGSLARS as DGSLARS
    from gradscale.optim.dgs import DGSSGD as DGSSGD
    from gradscale.optim.dgs import DGSAdam as DGSAdam
    from gradscale.optim.dgs import DGSAdamW as DGSAdamW
    from gradscale.optim.report import GroupingReport as GroupingReport
    from gradscale.optim.report import LayerReport as LayerReport
    from gradscale.optim.sgg_adam import SGGAdam as SGGAdam
    from gradscale.optim.sgg_adam import SGGAdamW as SGGAdamW
    from gradscale.optim.sgg_lamb import SGGLamb as SGGLamb
    from gradscale.optim.sgg_lion import SGGLion as SGGLion
    from gradscale.optim.sgg_sgd import SGGSGD as SGGSGD
    from gradscale.options import OptionError as OptionError

_PUBLIC = {
    "ALSDGC": "gradscale.control",
    "ALSDGCCallback": "gradscale.integrations.alsdgc_callback",
    "DGS": "gradscale.adapter.dgs",
    "DGSAdam": "gradscale.optim.dgs",
    "DGSAdamW": "gradscale.optim.dgs",
    "DGSLARS": "gradscale.optim.dgs",
    "DGSSGD": "gradscale.optim.dgs",
    "GradScaler": "gradscale.amp.grad_scaler",
    "GradientNormCallback": "gradscale.integrations.gradient_norms",
    "GroupingReport": "gradscale.optim.report",
    "LayerReport": "gradscale.optim.report",
    "OptionError": "gradscale.options",
    "SGG": "gradscale.adapter.sgg",
    "SGGAdam": "gradscale.optim.sgg_adam",
    "SGGAdamW": "gradscale.optim.sgg_adam",
    "SGGLamb": "gradscale.optim.sgg_lamb",
    "SGGLion": "gradscale.optim.sgg_lion",
    "SGGSGD": "gradscale.optim.sgg_sgd",
}

__all__ = [  # noqa: F822
    "ALSDGC",
    "ALSDGCCallback",
    "DGS",
    "DGSAdam",
    "DGSAdamW",
    "DGSLARS",
    "DGSSGD",
    "GradScaler",
    "GradientNormCallback",
    "GroupingReport",
    "LayerReport",
    "OptionError",
    "SGG",
    "SGGAdam",
    "SGGAdamW",
    "SGGLamb",
    "SGGLion",
    "SGGSGD",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("gradscale")
    elif name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# torch's backend autoload imports this package on behalf of scripts that never heard of it: nothing is said to those.
registration.install(explicit=not getattr(sys.modules.get("gradscale_autoload"), "opening", False))
