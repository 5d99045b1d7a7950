"""Options of all param groups, on their way through DeepSpeed's universal checkpoint.

For ZeRO 3 its loading hands what is saved of the first param group to every group. Each group therefore carries its
place and the options of all.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradscale.optim.layer_rows import KEY
from gradscale.optim.rule import Group

GROUPS = "groups"


def pack_options(groups: Sequence[Group]) -> None:
    """Put the options of all groups of a state dict into each of them, in place."""
    options = [{key: value for key, value in group.items() if key not in ("params", KEY)} for group in groups]
    for place, group in enumerate(groups):
        group[GROUPS] = {"place": place, "options": options}


def own_options(group: Group, place: int, number: int) -> Group:
    """Return the options of a group, without those of another group that loading gave it.

    Args:
        group: the group after loading.
        place: where it stands.
        number: how many groups there are.

    Raises:
        ValueError: another number of groups was saved, or what was saved of them is damaged.
    """
    present = {key: value for key, value in group.items() if key not in ("params", GROUPS)}
    if GROUPS not in group:
        return present
    try:
        given, options = group[GROUPS]["place"], list(group[GROUPS]["options"])
        if len(options) != number:
            raise IndexError(f"{len(options)} were saved, there are {number}")
        own, theirs = options[place], options[given]
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"the loaded param groups do not fit those of this optimizer: {error}") from None
    if given == place:
        return present
    # What was changed since loading stays.
    kept = {key: value for key, value in present.items() if key not in theirs or value != theirs[key]}
    return {**own, **kept}
