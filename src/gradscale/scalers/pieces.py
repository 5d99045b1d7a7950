"""Tensors cut into pieces that are small enough to be worked on in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def pieces(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape alike; yields views, together the tensors' elements, each element once.

    Args:
        size: the most elements in a piece.
        tensors: any layout; in which order the elements come depends on it.
    """
    first = tensors[0]
    # In the order of memory a transposed tensor is as flat as any other.
    order = sorted(range(first.dim()), key=first.stride().__getitem__, reverse=True)
    ordered = [tensor.permute(order) for tensor in tensors]
    if all(tensor.is_contiguous() for tensor in ordered):
        yield from zip(*(torch.split(tensor.view(-1), size) for tensor in ordered), strict=True)
    elif first.numel() <= size:
        yield tuple(ordered)
    else:
        # With gaps between elements there is no flat view: row by row, or a few rows at a time.
        rows = size * len(ordered[0]) // first.numel()
        for parts in zip(*(torch.split(tensor, max(1, rows)) for tensor in ordered), strict=True):
            if rows:
                yield parts
            else:
                yield from pieces(size, *(part[0] for part in parts))
