"""Param groups of bases that treat some parameters differently: each group is split into two."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gradscale.optim.param_groups import tensor_of


def split_groups(
    groups: list[dict[str, Any]], chosen: Collection[int], of_chosen: Mapping[str, Any], of_others: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Split param groups so that each holds only chosen or only other parameters.

    Args:
        groups: see `gradscale.optim.param_groups.as_groups`.
        chosen: ids of the chosen parameters.
        of_chosen: options that their groups get, where they have none of their own.
        of_others: likewise of the others.

    Returns:
        New groups, in order. A group that is not mixed stays whole; an empty one stays, so that trainers find the
        groups they made.
    """
    split: list[dict[str, Any]] = []
    for group in groups:
        parts: tuple[list[Any], list[Any]] = ([], [])
        for item in group["params"]:
            parts[id(tensor_of(item)) in chosen].append(item)
        for part, options in zip(parts, (of_others, of_chosen), strict=True):
            if part:
                split.append({**options, **group, "params": part})
        if not group["params"]:
            split.append({**of_others, **group})
    return split
