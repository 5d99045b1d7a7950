"""A learning rate of its own for the input embedding: by how much."""

from __future__ import annotations

from torch import nn

from gradscale.optim.model_ends import input_embedding, output_head
from gradscale.options import AUTO, OptionError

# What embedding_lr_factor="auto" is for an input embedding that is no head at the same time: see docs/quality.md.
EMBEDDING_FACTOR = 16.0


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
    weight = input_embedding(module)
    if factor == AUTO:
        tied = weight is not None and output_head(module) is weight
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
