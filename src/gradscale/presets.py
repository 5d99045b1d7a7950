"""Named settings of SGG: the values of all its options under one name. Standard library only, as the registry.

A preset is read once, where options are checked: param groups, checkpoints and reports hold plain values, which stay
what they are when a later version gives a preset other ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gradscale.option_tables import ADAM, SGG, STEP
from gradscale.options import Choice, Option, check_option

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # What measured best: the defaults of the table, and nowhere else.
        "default": MappingProxyType({name: option.default for name, option in SGG.items()}),
        # arXiv 2506.01049, Algorithm 1 and equations 5 to 7, with the settings of its experiments.
        "paper": MappingProxyType(
            {
                "n_clusters": 3,
                "recluster_interval": 500,
                "scale_decay": 0.99,
                "scale_bounds": (0.1, 10.0),
                "momentum_sign": "signed",
                "labels": "frozen",
                "global_mda": "parameters",
                "scope": "all",
                "grouping": "minibatch_kmeans",
                "static_block": None,
                "statistic": "mda",
                "labels_device": "device",
                "pool": "none",
                "min_layer_size": 0,
            }
        ),
    }
)
# What presets say of options that only some optimizers with SGG have; where nothing stands, the optimizer's default.
OF_SOME: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "default": MappingProxyType({}),
        # The paper scales Adam and AdamW as they are, at one learning rate for all layers.
        "paper": MappingProxyType({"nesterov": False, "embedding_lr_factor": 1.0}),
    }
)
PRESET = Option(
    Choice(tuple(PRESETS)),
    "default",
    "values of all options of SGG that are not given: what measured best, or the paper's",
)
NAME = "preset"


def takes_presets(options: Mapping[str, Option]) -> bool:
    """Whether all that a preset has a value for is among these options."""
    return SGG.keys() <= options.keys()


def expanded(
    given: Mapping[str, Any], *, prefix: str = "", beside: Mapping[str, Option] = MappingProxyType({})
) -> dict[str, Any]:
    """Return options with the values of a preset in its place; what is given beside it wins.

    Args:
        given: options by name, of a constructor or a param group. Without a preset they are returned as they are.
        prefix: of the names.
        beside: options that there are beside those of SGG, of which a preset may have values too (`OF_SOME`).

    Raises:
        OptionError: there is no such preset.
    """
    options = dict(given)
    if f"{prefix}{NAME}" not in options:
        return options
    name = check_option(NAME, options.pop(f"{prefix}{NAME}"), PRESET)
    # SGD and Muon have options of the same name, of which the presets say nothing.
    also = {key: value for key, value in OF_SOME[name].items() if key in beside and _is_ours(key, beside[key])}
    values = {**PRESETS[name], **also}
    return {**{f"{prefix}{key}": value for key, value in values.items()}, **options}


def _is_ours(name: str, option: Option) -> bool:
    known = {**ADAM, **STEP}[name]
    return (option.kind, option.help) == (known.kind, known.help)


def of_preset(name: str, given: Mapping[str, Any], options: Mapping[str, Option]) -> Any:
    """Return what an option of the base is where it is not given: what the preset says of it, or else its default.

    Args:
        name: of the option.
        given: options of SGG, of which a preset may be one.
        options: those of the base.
    """
    preset = given.get(NAME, PRESET.default)  # one that does not exist is refused where SGG's options are read
    said = OF_SOME[preset] if isinstance(preset, str) and preset in OF_SOME else {}
    return said.get(name, options[name].default)
