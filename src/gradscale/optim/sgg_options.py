"""The keywords that every SGG optimizer takes, whatever its base: one list for constructors and type checkers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

from gradscale.option_tables import SGG, STEP, TORCH_SWITCHES
from gradscale.options import nearest
from gradscale.presets import NAME, expanded

# The keywords of every optimizer with a step of its own, beside those of base and scaler.
OF_EVERY_STEP = (*TORCH_SWITCHES, *STEP, "module", "target_modules")


class SGGOptions(TypedDict, total=False):
    """See `SGGAdamW`; defaults are those of `gradscale.option_tables.SGG`."""

    n_clusters: int
    recluster_interval: int | float
    scale_decay: float
    scale_bounds: tuple[float, float]
    momentum_sign: Literal["signed", "absolute"]
    labels: Literal["frozen", "live"]
    global_mda: Literal["clusters", "parameters", "layer"]
    scope: Literal["all", "hidden", "auto"]
    grouping: Literal["kmeans", "layer", "static", "minibatch_kmeans", "gmm", "dbscan", "none"]
    static_block: int | None
    statistic: Literal["mda", "mean", "variance", "variance_sign", "l2", "mad", "none"]
    labels_device: Literal["device", "cpu", "hybrid"]
    pool: Literal["none", "lora"]
    min_layer_size: int
    total_steps: int | Literal["deferred"] | None
    preset: Literal["default", "paper"]


def sgg_options(given: Mapping[str, Any], *, owner: str, others: Iterable[str]) -> dict[str, Any]:
    """Return every option of SGG: those that are given, else the preset's, else their defaults.

    Args:
        given: keywords of a constructor.
        owner: its class, for the message.
        others: the other keywords that it takes.

    Raises:
        TypeError: there is no such option; the message gives the nearest one.
        OptionError: there is no such preset.
    """
    defaults = {**{name: option.default for name, option in SGG.items()}, "total_steps": None}
    for name in given:
        if name not in defaults and name != NAME:
            raise TypeError(
                f"{owner}() got an unexpected keyword argument {name!r}{nearest(name, (*defaults, NAME, *others))}"
            )
    return {**defaults, **expanded(given)}
