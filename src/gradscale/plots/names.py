"""Names of the parameters of an `optimizer.pt`, which numbers them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradscale.training.lines_file import read_lines
from gradscale.training.output_folder import SCALES

Shapes = Mapping[Any, torch.Size | None]


def parameter_names(
    folder: Path, groups: Sequence[Mapping[str, Any]], shapes: Shapes, scales: Mapping[Any, Tensor], step: int | None
) -> dict[Any, str]:
    """Return the name of every parameter.

    They are those that the optimizer was given, or that the run's `scales.jsonl` has for the same scales, or those of
    the model that `config.json` describes, in the Trainer's order. Where none of these fits they are numbers.

    Args:
        folder: of the checkpoint, inside of that of its run.
        groups: param groups as saved.
        shapes: of each parameter, as far as they are known.
        scales: of each scaled layer.
        step: of the checkpoint, if it is known.
    """
    keys = [key for group in groups for key in group["params"]]
    numbered = {key: key if isinstance(key, str) else f"parameter {key}" for key in keys}
    given = [name for group in groups for name in group.get("param_names") or ()]
    if len(given) == len(keys):
        return dict(zip(keys, map(str, given), strict=True))
    logged = _logged(folder.parent / SCALES, scales, step)
    if logged is not None:
        return numbered | logged
    of_model = _of_model(folder, [len(group["params"]) for group in groups])
    if of_model is not None and len(of_model) == len(keys):
        named = dict(zip(keys, of_model, strict=True))
        if all(shapes[key] in (None, shape) for key, (_, shape) in named.items()):
            return {key: name for key, (name, _) in named.items()}
    return numbered


def _logged(path: Path, scales: Mapping[Any, Tensor], step: int | None) -> dict[Any, str] | None:
    """Return the names under which the same scales, all of them in the same order, were logged last."""
    rows = [row for row in read_lines(path) if step is None or row["step"] <= step]
    layers = rows[-1].get("layers", {}) if rows else {}
    if len(layers) != len(scales):
        return None
    same = all(layer["scales"] == one.tolist() for layer, one in zip(layers.values(), scales.values(), strict=True))
    return dict(zip(scales, layers, strict=True)) if same else None


def _of_model(folder: Path, sizes: Sequence[int]) -> list[tuple[str, torch.Size]] | None:
    """Return names and shapes of a model of transformers in the order of the Trainer's param groups.

    Args:
        folder: with its `config.json`.
        sizes: numbers of parameters in the groups.
    """
    path = folder / "config.json"
    if not path.is_file() or importlib.util.find_spec("transformers") is None:
        return None
    model = _empty_model(path)
    if model is None:
        return None
    from transformers import Trainer

    trained = {name: param.shape for name, param in model.named_parameters() if param.requires_grad}
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    first, second = ([name for name in trained if (name in decayed) is inside] for inside in (True, False))
    if [len(first), len(second)][: len(sizes)] != list(sizes):
        return None
    return [(name, trained[name]) for name in (*first, *second)]


def _empty_model(path: Path) -> nn.Module | None:
    """Return the model without its weights, None if transformers does not know it."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(path.parent, local_files_only=True)
        kind = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
        if kind is None:
            return None
        with torch.device("meta"):
            model: nn.Module = kind(config)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError):
        return None
    return model
