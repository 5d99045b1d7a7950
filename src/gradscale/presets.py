"""Named settings of SGG: the values of all its options under one name. Standard library only, as the registry.

A preset is read once, where options are checked: param groups, checkpoints and reports hold plain values, which stay
what they are when a later version gives a preset other ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gradscale.option_tables import SGG
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
PRESET = Option(
    Choice(tuple(PRESETS)),
    "default",
    "values of all options of SGG that are not given: what measured best, or the paper's",
)
NAME = "preset"


def takes_presets(options: Mapping[str, Option]) -> bool:
    """Whether all that a preset has a value for is among these options."""
    return SGG.keys() <= options.keys()


def expanded(given: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Return options with the values of a preset in its place; what is given beside it wins.

    Args:
        given: options by name, of a constructor or a param group. Without a preset they are returned as they are.
        prefix: of the names.

    Raises:
        OptionError: there is no such preset.
    """
    options = dict(given)
    if f"{prefix}{NAME}" not in options:
        return options
    name = check_option(NAME, options.pop(f"{prefix}{NAME}"), PRESET)
    return {**{f"{prefix}{key}": value for key, value in PRESETS[name].items()}, **options}
