"""A first try of compiled code, on made-up numbers, against the same pass in torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor

# Rounding may fall to the other side where a number lies between two 16-bit ones. Wrong code is wrong almost
# everywhere.
_FEW = 0.02
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def probe(
    place: int, dtype: torch.dtype, own: torch.Size | None, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Return numbers in (0, 1) that ascend where there are few of them, and labels 0 and 1.

    Positive, because second moments are; without random numbers, because a run's own must not change.

    Args:
        place: of the tensor among those of a strip; each place gets other numbers.
        dtype: its dtype.
        own: its shape, if it is not the strip's.
        shape: the strip's shape.
        device: its device.
    """
    numbers = torch.arange(torch.Size(own or shape).numel(), device=device).view(own or shape)
    if not dtype.is_floating_point:
        return (numbers % 2).to(dtype)
    period = 101 + place
    return ((numbers * 37 % period + 1) if own is None else numbers + 1).to(torch.float64).div(period).to(dtype)


def differing(mine: list[Tensor], theirs: list[Tensor]) -> list[int]:
    """Return the places of tensors that are not the same within rounding."""
    return [place for place, (one, other) in enumerate(zip(mine, theirs, strict=True)) if _differ(one, other)]


def _differ(one: Tensor, other: Tensor) -> bool:
    if not one.dtype.is_floating_point:
        return not torch.equal(one, other)
    tolerance = _TOLERANCE[one.dtype]
    near = torch.isclose(one.double(), other.double(), rtol=tolerance, atol=tolerance * 1e-3)
    return float((~near).double().mean()) > _FEW
