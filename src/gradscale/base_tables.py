"""The options of bases that other libraries provide, beside `option_tables`: defaults are those of the library.

Standard library only, as the registry. Where the Trainer has an optimizer of that name, defaults are the Trainer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gradscale.option_tables import ADAM
from gradscale.options import Choice, Flag, Integer, Maybe, Option, Pair, Real, Triple

_DECAY = Real(0.0, 1.0, high_open=True)
_CLIP = Option(Real(0.0, low_open=True), 1.0, "largest root mean square of a layer's update, before the learning rate")

ADAFACTOR: Mapping[str, Option] = MappingProxyType(
    {
        "eps": Option(Pair(Real(0.0)), (1e-30, 1e-3), "added to the squared gradient; the second is not used"),
        "clip_threshold": _CLIP,
        "decay_rate": Option(Real(high=0.0), -0.8, "the second moment forgets at a rate of 1 - step ** decay_rate"),
        "beta1": Option(Maybe(_DECAY), None, "decay rate of a running mean of updates (4 bytes each); None: none"),
    }
)

CAME: Mapping[str, Option] = MappingProxyType(
    {
        "betas": Option(
            Triple(_DECAY, 0.9999), (0.9, 0.999, 0.9999), "decay rates of update, squared gradient and instability"
        ),
        "eps": Option(Pair(Real(0.0)), (1e-30, 1e-16), "added to the squared gradient, and to the instability"),
        "clip_threshold": _CLIP,
    }
)

APOLLO: Mapping[str, Option] = MappingProxyType(
    {
        "rank": Option(Integer(1), 128, "rank into which gradients are projected"),
        "proj": Option(Choice(("random", "svd")), "random", "projection by random numbers, or by singular vectors"),
        "scale_type": Option(Choice(("channel", "tensor")), "channel", "a factor for each channel, or each layer"),
        "update_proj_gap": Option(Integer(1), 200, "steps between two projections"),
        "scale": Option(Real(0.0, low_open=True), 1.0, "its root multiplies the update of projected layers"),
        "proj_type": Option(
            Choice(("std", "reverse_std", "right", "left")), "std", "the side that is projected; std: the shorter one"
        ),
        "betas": ADAM["betas"],
        "eps": Option(ADAM["eps"].kind, 1e-6, ADAM["eps"].help, ADAM["eps"].invalid),
        "correct_bias": Option(Flag(), True, "divide the moments by what they lack in the first steps"),
        "scale_front": Option(Flag(), False, "multiply by the root of scale before the limit on growth, not after"),
        "disable_nl": Option(Flag(), False, "no limit on the growth of an update's norm from step to step"),
    }
)

MUON: Mapping[str, Option] = MappingProxyType(
    {
        "momentum": Option(_DECAY, 0.95, "decay rate of the momentum of hidden matrices"),
        "nesterov": Option(Flag(), True, "Nesterov's momentum"),
        "ns_steps": Option(Integer(1, 99), 5, "Newton-Schulz iterations"),
        "use_adjusted_lr": Option(
            Flag(),
            True,
            "multiply the rate of a matrix by 0.2 sqrt(its longer side), so that one learning rate serves all "
            "parameters; False: by sqrt(rows / columns) where that is above 1",
        ),
        "adamw_lr": Option(
            Maybe(Real(0.0)), None, "learning rate of all parameters that are no hidden matrix; None: the same"
        ),
        "betas": Option(ADAM["betas"].kind, (0.9, 0.95), "decay rates of AdamW's moments", ADAM["betas"].invalid),
        "eps": Option(ADAM["eps"].kind, 1e-10, "added to the root of AdamW's second moment", ADAM["eps"].invalid),
    }
)

ADAMW_BITSANDBYTES: Mapping[str, Option] = MappingProxyType(
    {
        "betas": ADAM["betas"],
        "eps": ADAM["eps"],
        "min_8bit_size": Option(Integer(1), 4096, "elements from which on moments are kept in 8 bits, not in 32"),
    }
)

ADAMW_TORCHAO: Mapping[str, Option] = MappingProxyType(
    {
        "betas": ADAM["betas"],
        "eps": ADAM["eps"],
        "amsgrad": ADAM["amsgrad"],
        "block_size": Option(Integer(1), 256, "elements that share a scale; others' moments are kept in the dtype"),
        "kernel": Option(
            Choice(("compiled", "eager")),
            "compiled",
            "run the library's step as code from torch.compile, as it does itself, or operation by operation",
        ),
    }
)
