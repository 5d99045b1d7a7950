"""The layers at the two ends of a model, its input embedding and its output head: which they are, and by what names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gradscale.optim.target_modules import without_wrappers
from gradscale.option_tables import SGG
from gradscale.options import AUTO, OptionError, check_option
from gradscale.sharding.roster import Roster

ALL, HIDDEN = "all", "hidden"  # values of `scope`


def input_embedding(module: nn.Module | None) -> Any:
    """Return the weight of the input embedding, as `get_input_embeddings` of a model tells it; None if it does not."""
    return _weight(_layer(module, "get_input_embeddings"))


def output_head(module: nn.Module | None) -> Any:
    """Return the weight of the output head, as `get_output_embeddings` of a model tells it; None if it does not."""
    return _weight(_layer(module, "get_output_embeddings"))


def embedding_names(module: nn.Module | None, roster: Roster) -> frozenset[str]:
    """Return the names that the weight of the input embedding may go by, with wrappers of engines and without.

    Args:
        module: the model. Without one, and of one that has no embedding, there are none.
        roster: what the optimizer was given.
    """
    return _names(module, "get_input_embeddings", roster)


def end_names(module: nn.Module | None, roster: Roster) -> frozenset[str]:
    """Return the names that the weights of input embedding and output head may go by; see `embedding_names`."""
    return embedding_names(module, roster) | _names(module, "get_output_embeddings", roster)


def which_layers(scope: Any, *, known: bool) -> str:
    """Return which layers are scaled: "auto" is "hidden" where the model is known, else "all".

    Raises:
        OptionError: it is something else, or "hidden" of an unknown model: nobody knows which layers these are.
    """
    checked = check_option("scope", scope, SGG["scope"])
    if checked == HIDDEN and not known:
        raise OptionError(f"scope={checked!r} needs module=, the model whose embedding and head are left out")
    return (HIDDEN if known else ALL) if checked == AUTO else str(checked)


def _names(module: nn.Module | None, find: str, roster: Roster) -> frozenset[str]:
    owner = _layer(module, find)
    weight = _weight(owner)
    if module is None or weight is None:
        return frozenset()
    names = {f"{name}.weight" if name else "weight" for name, one in module.named_modules() if one is owner}
    given = roster.info(weight)
    return frozenset({*names, *map(without_wrappers, names), *([] if given is None else [given.name])})


def _layer(module: nn.Module | None, find: str) -> Any:
    """Return what a method of the model returns, if it has that method."""
    method = getattr(module, find, None)
    return None if method is None else method()


def _weight(layer: Any) -> Any:
    weight = getattr(layer, "weight", None)
    return weight if isinstance(weight, Tensor) else None
