"""What a tensor seen by `step()` holds: stretches of layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A contiguous stretch of one layer inside a local tensor.

    Attributes:
        shape: full shape of the layer, before any sharding.
        offset: where the stretch starts in the flattened layer, in elements.
        start: where it starts in the flattened local tensor, in elements.
        length: its length, in elements.
    """

    shape: tuple[int, ...]
    offset: int
    start: int
    length: int
