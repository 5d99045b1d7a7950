"""Which parameters of a model are hidden matrices: what Muon is for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from gradscale.options import OptionError


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of linear layers and convolutions that require gradients, without embeddings and heads.

    A head is what the model calls its output embeddings; in a model of transformers without any (a classifier) what
    stands beside its base model; and in any other model its last linear layer. An embedding that shares its weight
    with the head is none either, nor is what PEFT adds to an embedding or a head. Bare parameters of other modules
    (positions, the experts of a mixture in one tensor) are left to AdamW: what a matrix is in them is not known.

    Args:
        module: the model.

    Raises:
        OptionError: there are none.
    """
    outside = {id(param) for owner in _ends(_unwrapped(module)) for param in owner.parameters()}
    found: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        if isinstance(owner, _matrix_kinds()):
            for param in owner._parameters.values():
                if param is not None and param.requires_grad and param.dim() >= 2 and id(param) not in outside:
                    found[id(param)] = param
    if not found:
        raise OptionError(
            f"{type(module).__name__} has no hidden matrices that require gradients (weights of linear layers and "
            "convolutions, without the output head): use sgg_adamw, or say use_muon in the param groups"
        )
    return list(found.values())


def _ends(model: nn.Module) -> Iterator[nn.Module]:
    """Yield embeddings and heads."""
    for owner in model.modules():
        if isinstance(getattr(owner, "base_layer", owner), nn.Embedding | nn.EmbeddingBag):
            yield owner
    get_head: Any = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    body = getattr(model, str(getattr(model, "base_model_prefix", "")) or "-", None)
    if isinstance(head, nn.Module):
        yield _with_adapters(model, head)
    elif isinstance(body, nn.Module):
        yield from (child for child in model.children() if child is not body)
    elif not hasattr(model, "base_model_prefix"):
        linear = [owner for owner in model.modules() if isinstance(owner, nn.Linear)]
        yield from linear[-1:]


def _with_adapters(model: nn.Module, head: nn.Module) -> nn.Module:
    """Return the PEFT layer around a head, if there is one."""
    return next((owner for owner in model.modules() if getattr(owner, "base_layer", None) is head), head)


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the model inside of PEFT, DDP and torch.compile."""
    while True:
        if callable(getattr(module, "get_base_model", None)):
            inner: Any = getattr(module, "get_base_model")()  # noqa: B009  # a tensor or a module to mypy
        else:
            inner = getattr(module, "_orig_mod", None) or (
                module.module if isinstance(module, nn.parallel.DistributedDataParallel) else None
            )
        if not isinstance(inner, nn.Module) or inner is module:
            return module
        module = inner


def _matrix_kinds() -> tuple[type[Any], ...]:
    # GPT-2 style models use transformers' own transposed linear layer; without transformers nothing can be one.
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return (nn.Linear, _ConvNd) if conv1d is None else (nn.Linear, _ConvNd, conv1d)
