"""Methods of single objects replaced for a while. Standard library only."""

from __future__ import annotations

from typing import Any


class InstancePatches:
    """Replaces attributes of objects, not of their classes, and puts back what was there."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, bool, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of this object until `undo`."""
        own = vars(owner)
        self._replaced.append((owner, name, name in own, own.get(name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put everything back, the last first."""
        while self._replaced:
            owner, name, was_own, before = self._replaced.pop()
            if was_own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)
