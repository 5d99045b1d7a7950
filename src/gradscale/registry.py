"""The table of named optimizers. A new optimizer joins with one entry here and needs no change elsewhere.

Standard library only: names must be known before torch or transformers is imported.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

from gradscale import base_tables as bases
from gradscale.option_checks import Check, check_apollo, check_dgs, check_sgd, check_sgg
from gradscale.option_tables import ADAM, ADAPTER, DGS, DGS_ON_ADAM, LAMB, LARS, LION, SGD, SGG, SGG_ADAM, STEP
from gradscale.options import AUTO, Option, nearest

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class OptimizerEntry:
    """One value of `--optim`.

    Attributes:
        name: the value of `--optim`.
        target: the class as `"module:attribute"`, imported on first use, or the class itself.
        summary: one line for humans.
        options: what `--optim_args` takes, by constructor keyword.
        trainer_fields: constructor keyword to the `TrainingArguments` fields that fill it (two fields make a pair).
        trainer_defaults: constructor keywords whose default differs inside a Trainer, where the run length is known.
        requires: module that must be importable to the pip requirement that provides it.
        checks: what its options must not say together; the constructor asks the same.
        whole_layers: it steps layers that are whole, or sharded each by itself (FSDP2), and no vectors of several.
    """

    name: str
    target: str | type[Any]
    summary: str
    options: Mapping[str, Option]
    trainer_fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trainer_defaults: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    whole_layers: bool = False

    def load(self) -> type[Any]:
        """Import and return the optimizer class."""
        if isinstance(self.target, type):
            return self.target
        module, _, attribute = self.target.partition(":")
        return cast("type[Any]", getattr(importlib.import_module(module), attribute))


_ADAM_FIELDS = MappingProxyType({"betas": ("adam_beta1", "adam_beta2"), "eps": ("adam_epsilon",)})
# A 300-step fine-tune must not silently be plain AdamW: inside a Trainer the default interval is a share of the run
# (the paper uses 1 to 5 % of all steps).
SGG_TRAINER_DEFAULTS = MappingProxyType({"recluster_interval": 0.05})
# What measured best, on Adam alone: see docs/quality.md. The model is known there, too, and with it the embedding.
_SGG_ADAM_TRAINER_DEFAULTS = MappingProxyType(
    {
        **SGG_TRAINER_DEFAULTS,
        "n_clusters": 8,
        "scale_decay": 0.5,
        "momentum_sign": "absolute",
        "labels": "live",
        "scope": AUTO,
        "embedding_lr_factor": AUTO,
    }
)


def _adapted(
    name: str,
    target: str,
    summary: str,
    options: Mapping[str, Option],
    requires: Mapping[str, str],
    *,
    trainer_fields: Mapping[str, tuple[str, ...]] = _ADAM_FIELDS,
    checks: tuple[Check, ...] = (),
) -> OptimizerEntry:
    """Return the entry of the adapter around an optimizer of another library."""
    return OptimizerEntry(
        name=name,
        target=f"gradscale.adapter.named.{target}",
        summary=summary,
        options=MappingProxyType({**options, **SGG}),
        trainer_fields=trainer_fields,
        trainer_defaults=SGG_TRAINER_DEFAULTS,
        requires=requires,
        checks=(check_sgg, *checks),
        whole_layers=True,
    )


_BITSANDBYTES = MappingProxyType({"bitsandbytes": "bitsandbytes>=0.46"})
_TORCHAO = MappingProxyType({"torchao": "torchao>=0.11"})

_ADAPTED: tuple[OptimizerEntry, ...] = (
    _adapted(
        "sgg_adafactor",
        "adafactor:SGGAdafactor",
        "SGG on Adafactor of transformers, with the settings of --optim adafactor",
        {**bases.ADAFACTOR, **ADAPTER},
        {"transformers": "transformers>=4.46"},
        trainer_fields={},
    ),
    _adapted(
        "sgg_came",
        "came:SGGCAME",
        "SGG on CAME of came-pytorch",
        bases.CAME,
        {"came_pytorch": "came-pytorch>=0.1.3"},
        trainer_fields={"betas": ("adam_beta1", "adam_beta2")},
    ),
    _adapted(
        "sgg_apollo_adamw",
        "apollo:SGGAPOLLOAdamW",
        "SGG on APOLLO of apollo-torch (low-rank moments of linear layers, AdamW for the rest)",
        {**bases.APOLLO, "kept_momentum": replace(ADAPTER["kept_momentum"], default="gradient")},
        {"apollo_torch": "apollo-torch>=1.0.3"},
        checks=(check_apollo,),
    ),
    _adapted(
        "sgg_muon",
        "muon:SGGMuon",
        "SGG on Muon of pytorch-optimizer (hidden matrices) and its AdamW (embeddings, head, vectors)",
        bases.MUON,
        {"pytorch_optimizer": "pytorch-optimizer>=4.1"},
    ),
    _adapted(
        "sgg_adamw_8bit",
        "adamw_bitsandbytes:SGGAdamW8bit",
        "SGG on AdamW of bitsandbytes with moments in 8 bits",
        bases.ADAMW_BITSANDBYTES,
        _BITSANDBYTES,
    ),
    _adapted(
        "sgg_paged_adamw_8bit",
        "adamw_bitsandbytes:SGGPagedAdamW8bit",
        "SGG on AdamW of bitsandbytes with moments in 8 bits, moved to the host where the GPU is full",
        bases.ADAMW_BITSANDBYTES,
        _BITSANDBYTES,
    ),
    _adapted(
        "sgg_adamw_torch_8bit",
        "adamw_torchao:SGGAdamWTorch8bit",
        "SGG on AdamW of torchao with moments in 8 bits",
        bases.ADAMW_TORCHAO,
        _TORCHAO,
    ),
    _adapted(
        "sgg_adamw_torch_4bit",
        "adamw_torchao:SGGAdamWTorch4bit",
        "SGG on AdamW of torchao with moments in 4 bits",
        bases.ADAMW_TORCHAO,
        _TORCHAO,
    ),
)

ENTRIES: tuple[OptimizerEntry, ...] = (
    OptimizerEntry(
        name="sgg_adamw",
        target="gradscale.optim.sgg_adam:SGGAdamW",
        summary="SGG on AdamW (decoupled weight decay)",
        options=MappingProxyType({**SGG_ADAM, **SGG, **STEP}),
        trainer_fields=_ADAM_FIELDS,
        trainer_defaults=_SGG_ADAM_TRAINER_DEFAULTS,
        checks=(check_sgg,),
    ),
    OptimizerEntry(
        name="sgg_adam",
        target="gradscale.optim.sgg_adam:SGGAdam",
        summary="SGG on Adam (weight decay added to the gradient)",
        options=MappingProxyType({**SGG_ADAM, **SGG, **STEP}),
        trainer_fields=_ADAM_FIELDS,
        trainer_defaults=_SGG_ADAM_TRAINER_DEFAULTS,
        checks=(check_sgg,),
    ),
    OptimizerEntry(
        name="sgg_sgd",
        target="gradscale.optim.sgg_sgd:SGGSGD",
        summary="SGG on SGD, with or without momentum",
        options=MappingProxyType({**SGD, **SGG, **STEP}),
        trainer_defaults=SGG_TRAINER_DEFAULTS,
        checks=(check_sgd, check_sgg),
    ),
    OptimizerEntry(
        name="sgg_lion",
        target="gradscale.optim.sgg_lion:SGGLion",
        summary="SGG on Lion (decoupled weight decay)",
        options=MappingProxyType({**LION, **SGG, **STEP}),
        # --adam_beta1 and --adam_beta2 have Adam's defaults, which cannot be told from a choice: they are not Lion's.
        trainer_defaults=SGG_TRAINER_DEFAULTS,
        checks=(check_sgg,),
    ),
    OptimizerEntry(
        name="sgg_lamb",
        target="gradscale.optim.sgg_lamb:SGGLamb",
        summary="SGG on LAMB (decoupled weight decay, trust ratios of matrices)",
        options=MappingProxyType({**LAMB, **SGG, **STEP}),
        # Not eps: the default of --adam_epsilon is Adam's, a hundredth of LAMB's.
        trainer_fields=MappingProxyType({"betas": _ADAM_FIELDS["betas"]}),
        trainer_defaults=SGG_TRAINER_DEFAULTS,
        checks=(check_sgg,),
    ),
    OptimizerEntry(
        name="dgs_sgd",
        target="gradscale.optim.dgs:DGSSGD",
        summary="DGS on SGD",
        options=MappingProxyType({**SGD, **DGS, **STEP}),
        checks=(check_sgd, check_dgs),
    ),
    OptimizerEntry(
        name="dgs_lars",
        target="gradscale.optim.dgs:DGSLARS",
        summary="DGS on LARS",
        options=MappingProxyType({**LARS, **DGS, **STEP}),
        checks=(check_dgs,),
    ),
    OptimizerEntry(
        name="dgs_adamw",
        target="gradscale.optim.dgs:DGSAdamW",
        summary="DGS on AdamW (decoupled weight decay)",
        options=MappingProxyType({**ADAM, **DGS_ON_ADAM, **STEP}),
        trainer_fields=_ADAM_FIELDS,
        checks=(check_dgs,),
    ),
    OptimizerEntry(
        name="dgs_adam",
        target="gradscale.optim.dgs:DGSAdam",
        summary="DGS on Adam (weight decay added to the gradient)",
        options=MappingProxyType({**ADAM, **DGS_ON_ADAM, **STEP}),
        trainer_fields=_ADAM_FIELDS,
        checks=(check_dgs,),
    ),
    *_ADAPTED,
)

_BY_NAME = {entry.name: entry for entry in ENTRIES}
REGISTRY: Mapping[str, OptimizerEntry] = MappingProxyType(_BY_NAME)


def add_entry(entry: OptimizerEntry) -> None:
    """Add a name for this process; the same name again replaces what was added, but none of the package's own.

    Raises:
        ValueError: it is a name of the package, or no name for an option on a command line.
    """
    if not _NAME.fullmatch(entry.name):
        raise ValueError(f"name={entry.name!r} is not allowed: expected lower-case letters, digits and underscores")
    if any(entry.name == own.name for own in ENTRIES):
        raise ValueError(f"name={entry.name!r} is not allowed: gradscale has an optimizer of that name")
    _BY_NAME[entry.name] = entry


def get_entry(name: str) -> OptimizerEntry:
    """Return the entry of `name`.

    Raises:
        ValueError: no optimizer has that name; the message gives the nearest one.
    """
    try:
        return REGISTRY[name]
    except KeyError:
        hint = nearest(name, REGISTRY)
        raise ValueError(f"unknown gradscale optimizer {name!r}{hint or '.'} Known: {', '.join(REGISTRY)}") from None
