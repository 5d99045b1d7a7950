"""What is wrong with a planned run, and what is worth knowing about it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Findings:
    """Sentences, in the order in which they were found.

    Attributes:
        not_supported: the run would stop with an error, or train otherwise than was asked for.
        watch_out: the run goes on, but this is likely not what was meant, or has not been tested.
    """

    not_supported: list[str] = field(default_factory=list)
    watch_out: list[str] = field(default_factory=list)
