"""What options must not say together, though each of them alone may: for constructors, and for `--optim_args`.

Standard library only, as the registry. Each function takes all options of a param group by name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from gradscale.options import OptionError

Check = Callable[[Mapping[str, Any]], None]


def check_sgd(options: Mapping[str, Any]) -> None:
    """Nesterov's momentum looks ahead along a momentum that is not dampened.

    Raises:
        OptionError: there is none, or it is.
    """
    if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
        raise OptionError(
            f"nesterov=True needs momentum above 0 and dampening=0, got momentum={options['momentum']} and "
            f"dampening={options['dampening']}"
        )


def check_dgs(options: Mapping[str, Any]) -> None:
    """Resets are of a running mean, and some forms divide by eps alone where there is no gradient.

    Raises:
        OptionError: there is no running mean to reset, eps is 0 in a form that needs it, or 1 is out of bounds.
    """
    for name in ("reset_every", "reset_spike"):
        if options[name] is not None and options["importance_decay"] == 0:
            raise OptionError(
                f"{name}={options[name]} needs a running importance to reset: set importance_decay above 0 (without "
                "it importance is today's gradient alone)"
            )
    own = options.get("importance_eps")
    if options["form"] in ("importance", "full") and (options["eps"] if own is None else own) == 0:
        name = "eps" if own is None else "importance_eps"
        hint = "; importance_eps above 0 allows it" if own is None and "importance_eps" in options else ""
        raise OptionError(
            f"{name}=0 is not allowed with form={options['form']!r}: where there is no gradient, 1 / 0{hint}"
        )
    low, high = options["factor_bounds"]
    if not low <= 1 <= high:
        raise OptionError(f"factor_bounds={(low, high)} is not allowed: expected 1 between the two")


# Groupings that scikit-learn computes; they are slow, and only they need it.
SKLEARN_GROUPINGS = ("minibatch_kmeans", "gmm", "dbscan")
_WITHOUT_LABELS = ("layer", "static", "none")


def check_sgg(options: Mapping[str, Any]) -> None:
    """Some groupings need a library, and some options speak of what others have left nothing of.

    Raises:
        OptionError: scikit-learn is missing, D over parameters is asked for where it is not defined, or that of a layer
            where it says nothing, host memory is asked for where there are no labels, rows in a block where there are
            no blocks, or pools where there are.
    """
    grouping, statistic, over = options["grouping"], options["statistic"], options["global_mda"]
    if grouping in SKLEARN_GROUPINGS and importlib.util.find_spec("sklearn") is None:
        raise OptionError(f"grouping={grouping!r} needs scikit-learn, which is missing: pip install scikit-learn")
    if options["static_block"] is not None and grouping != "static":
        raise OptionError(
            f"static_block={options['static_block']} needs grouping='static', whose blocks it makes: got "
            f"grouping={grouping!r}"
        )
    if options["pool"] != "none" and grouping == "static":
        raise OptionError(
            f"pool={options['pool']!r} is not allowed with grouping={grouping!r}, whose blocks are those of one layer"
        )
    if over == "parameters" and (statistic not in ("mda", "none") or grouping == "static"):
        name, value = ("statistic", statistic) if statistic not in ("mda", "none") else ("grouping", grouping)
        raise OptionError(
            f"global_mda={over!r} is not allowed with {name}={value!r}: a single parameter has a deviation from its "
            "layer's mean, and the median over all of them says what MDAs of clusters are compared with; use "
            "global_mda='clusters'"
        )
    if over == "layer" and grouping == "layer":
        raise OptionError(
            f"global_mda={over!r} (the default) is not allowed with grouping={grouping!r}: one cluster that is "
            "compared with itself always has a scale of 1; use global_mda='clusters'"
        )
    if options["labels_device"] != "device" and (options["labels"] == "live" or grouping in _WITHOUT_LABELS):
        no_labels = grouping in _WITHOUT_LABELS
        name, value = ("grouping", grouping) if no_labels else ("labels", "live")
        hint = "" if no_labels else "; frozen ones can be kept there: labels='frozen'"
        raise OptionError(
            f"labels_device={options['labels_device']!r} is not allowed with {name}={value!r}, which keeps no labels"
            f"{hint}"
        )


def check_apollo(options: Mapping[str, Any]) -> None:
    """A factor for each channel needs a projection that leaves the channels, which are the longer side, as they are.

    Raises:
        OptionError: another projection is asked for.
    """
    if options["scale_type"] == "channel" and options["proj_type"] != "std":
        raise OptionError(
            f"scale_type='channel' with proj_type={options['proj_type']!r} is not allowed: only 'std' projects the "
            "shorter side of every layer; use it, or scale_type='tensor'"
        )
