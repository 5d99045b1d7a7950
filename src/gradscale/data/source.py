"""What every source of text offers: a fingerprint and two streams of documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal, Protocol

Split = Literal["train", "validation"]


class DataError(ValueError):
    """Data that cannot be found, read or used. The message names it and what would be right."""


class Source(Protocol):
    """Documents of a training and of a validation split, in an order that never changes."""

    @property
    def description(self) -> str:
        """A few words for humans."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever a document of either split may have changed; the caches are keyed by it."""

    def documents(self, split: Split) -> Iterator[str]:
        """Iterate over the documents of `split`.

        Raises:
            DataError: a document cannot be read.
        """


def digest(*parts: str | bytes) -> str:
    """Return the hex SHA-256 of `parts`, with their boundaries part of what is hashed."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


def is_held_out(key: str, fraction: float) -> bool:
    """Whether the item `key` belongs to the validation split that holds about `fraction` of all items.

    A hash of the key alone decides, so neither the machine, the order nor the other items matter.
    """
    return int(digest("held-out", key)[:12], 16) < fraction * 16**12
