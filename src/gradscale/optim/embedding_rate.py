"""A learning rate of its own for the input embedding: which layer that is, and by how much."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gradscale.optim.target_modules import without_wrappers
from gradscale.options import AUTO, OptionError
from gradscale.sharding.roster import Roster

# What embedding_lr_factor="auto" is for an input embedding that is no head at the same time: see docs/quality.md.
EMBEDDING_FACTOR = 16.0


def embedding_names(module: nn.Module | None, roster: Roster) -> frozenset[str]:
    """Return the names that the weight of the input embedding may go by, with wrappers of engines and without.

    Args:
        module: the model, which has `get_input_embeddings` as transformers' models have. Without one, and of one that
            has no embedding, there are none.
        roster: what the optimizer was given.
    """
    owner = _layer(module, "get_input_embeddings")
    weight = _weight(owner)
    if module is None or weight is None:
        return frozenset()
    names = {f"{name}.weight" if name else "weight" for name, one in module.named_modules() if one is owner}
    given = roster.info(weight)
    return frozenset({*names, *map(without_wrappers, names), *([] if given is None else [given.name])})


def embedding_factor(factor: float | str, module: nn.Module | None) -> float:
    """Return what the learning rate of the input embedding is multiplied by.

    "auto" is `EMBEDDING_FACTOR`, and 1 without a module (nobody knows which parameter is meant), of a model without an
    input embedding, and where the head is tied to it, which keeps the rate of all other matrices.

    Args:
        factor: checked value of the option.
        module: the model, or None.

    Raises:
        OptionError: a factor other than 1 is asked for, and there is no module.
        ValueError: or the module says of no embedding, or of one that is not trained.
    """
    weight = _weight(_layer(module, "get_input_embeddings"))
    if factor == AUTO:
        tied = weight is not None and _weight(_layer(module, "get_output_embeddings")) is weight
        return 1.0 if weight is None or tied else EMBEDDING_FACTOR
    asked = f"embedding_lr_factor={factor}"
    if factor != 1 and module is None:
        raise OptionError(f"{asked} needs module=, the model whose embedding is meant")
    if factor != 1 and weight is None:
        raise ValueError(
            f"{asked} has nothing to multiply: {type(module).__name__} has no input embedding (get_input_embeddings)"
        )
    if factor != 1 and not weight.requires_grad:
        raise ValueError(f"{asked} has nothing to multiply: the input embedding is frozen")
    return float(factor)


def _layer(module: nn.Module | None, find: str) -> Any:
    """Return what a method of the model returns, if it has that method."""
    method = getattr(module, find, None)
    return None if method is None else method()


def _weight(layer: Any) -> Any:
    weight = getattr(layer, "weight", None)
    return weight if isinstance(weight, Tensor) else None
