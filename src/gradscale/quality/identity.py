"""What a finished cell is the result of: everything that decides it, and nothing that does not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gradscale.optim.embedding_rate import EMBEDDING_FACTOR
from gradscale.options import AUTO
from gradscale.presets import PRESETS, expanded, takes_presets
from gradscale.quality.optimizers import own_rates
from gradscale.quality.study import Arm, Study
from gradscale.registry import REGISTRY
from gradscale.training.arguments import TrainArguments

if TYPE_CHECKING:
    from gradscale.quality.cell import Cell

_VERSION = 1  # of what a cell computes: a change that changes results needs another
# Keys that studies have got since then: cells from before are those of a study that does not give them.
_LATER = ("unscaled", "lora", "rest")
_LATER_OF_SCHEDULE = ("micro_batch_size", "compile")
# Likewise of `gradscale train`, whose model and data studies take: these it had from the beginning.
_FIRST_OF_TASK = frozenset(
    "model_name_or_path model_config dtype tokenizer_name_or_path vocab_size corpus dataset_name dataset_config_name "
    "train_files validation_files validation_fraction text_column block_size max_train_tokens max_eval_tokens "
    "compare_optim overwrite_output_dir plot".split()
)
# What options of SGG, and of some of its optimizers, that are not given meant then. Where a default is another now,
# cells are asked for with it.
_FIRST_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "n_clusters": 3,
        "recluster_interval": 0.05,
        "scale_decay": 0.9,
        "scale_bounds": (0.1, 10.0),
        "momentum_sign": "signed",
        "labels": "frozen",
        "global_mda": "clusters",
        "scope": "all",
        "grouping": "kmeans",
        "static_block": None,
        "statistic": "mda",
        "labels_device": "device",
        "pool": "none",
        "min_layer_size": 48,
        "nesterov": False,
        "embedding_lr_factor": 1.0,
    }
)
# Of these, options that came later: those that are what they were before they came say nothing.
_LATER_OPTIONS = ("nesterov", "embedding_lr_factor", "scope")


def asked(study: Study, cell: Cell) -> Any:
    """Return all that decides the result of a cell, as JSON gives it back.

    Its learning rates and its seeds are those of the cell: it is the same one, whatever else is tried beside it.
    """
    arm = study.arms[cell.arm]
    described = {field.name: getattr(arm, field.name) for field in dataclasses.fields(arm)}
    for name in ("name", "learning_rates", *(name for name in _LATER if not described[name])):
        del described[name]
    described["options"] = _meant(arm)
    described["rates"] = dict(arm.rates)
    described["schedule"] = dataclasses.asdict(arm.schedule)
    for name in _LATER_OF_SCHEDULE:
        if not described["schedule"][name]:
            del described["schedule"][name]
    values = {
        "version": _VERSION,
        "task": _task(study.task),
        "arm": described,
        "cell": dataclasses.asdict(cell),
    }
    return json.loads(json.dumps(values))


def _task(task: TrainArguments) -> dict[str, Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(task)}
    described = dataclasses.asdict(task)
    return {key: value for key, value in described.items() if key in _FIRST_OF_TASK or value != defaults[key]}


def _meant(arm: Arm) -> dict[str, Any]:
    """Return the options with the values of a preset in its place, and with defaults that have changed since."""
    entry = REGISTRY.get(arm.optim)
    if entry is None or not takes_presets(entry.options):
        return dict(arm.options)
    given = {key: value for key, value in arm.options.items() if (key, value) != ("preset", "default")}
    of_base = {name: option.default for name, option in entry.options.items()}
    defaults = {**of_base, **PRESETS["default"], **entry.trainer_defaults, **own_rates(arm)}
    changed = {key: value for key, value in defaults.items() if value != _FIRST_DEFAULTS.get(key, value)}
    meant = {**changed, **expanded(given, beside=entry.options)}
    if meant.get("embedding_lr_factor") == AUTO:
        meant["embedding_lr_factor"] = f"{AUTO}: {EMBEDDING_FACTOR:g}"  # it has been another number before
    silent = {name for name in _LATER_OPTIONS if meant.get(name) == _FIRST_DEFAULTS[name]}
    return {key: value for key, value in meant.items() if key not in silent}
