"""Median and median deviation: what stays where it is when a minority of the values is bad."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_NORMAL = 1.4826  # the standard deviation of a normal distribution, over its median absolute deviation


def center_and_deviation(values: Collection[float]) -> tuple[float, float]:
    """Return the median, and 1.4826 times the median distance from it (a standard deviation, for normal values)."""
    ordered = sorted(values)
    center = _middle(ordered)
    # In this order the distances fall and then rise, which Python sorts in one pass.
    return center, _NORMAL * _middle(sorted([abs(value - center) for value in ordered]))


def _middle(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * ordered[half - 1] + 0.5 * ordered[half]
