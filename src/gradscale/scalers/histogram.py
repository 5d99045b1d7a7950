"""Integer histograms of a tensor over the bfloat16 grid.

Rounding a number to bfloat16 is a ready-made binning: 65,536 bins whose width follows the magnitude (relative width at
most 2^-7), found by one pass without knowing minimum or maximum. The counts are integers, so they add up to the same
numbers under any split of the tensor over chunks, ranks or engines, and all that is derived from them (centroids,
medians, scales) is the same bit for bit.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gradscale.scalers.pieces import pieces

_MAGNITUDES = 1 << 15  # bit patterns of one sign
_FINITE = _MAGNITUDES - (1 << 7)  # those of finite numbers: inf and NaN, exponents of all ones, come last
N_BINS = 2 * _FINITE  # bins of finite values, in ascending order of value
ZERO_EDGE = _FINITE  # bins below are negative (the last is -0), bins from here on are positive (the first is +0)
_LARGEST = torch.finfo(torch.bfloat16).max
# Elements counted at a time, 18 bytes each at most. Shorter pieces would stay in a CPU's cache, but threads that wait
# for each other after every piece cost more than that saves.
_PIECE_ON_CPU, _PIECE = 1 << 19, 1 << 22


@functools.lru_cache(maxsize=8)
def bin_values(device: torch.device) -> Tensor:
    """Return the value of every bin: float64, shape `[N_BINS]`, ascending."""
    patterns = torch.arange(_FINITE, dtype=torch.int16, device=device)
    positive = patterns.view(torch.bfloat16).to(torch.float64)
    return torch.cat([-positive.flip(0), positive])


def count_values(tensor: Tensor, *, absolute: bool = False, center: float = 0.0) -> tuple[Tensor, Tensor]:
    """Count the elements of one tensor in every bin, see `Counter.count`.

    Returns:
        The counts, int64, shape `[N_BINS]`, and the number of elements that are inf or NaN, int64, shape `[]`.
    """
    counter = Counter(tensor.device)
    counts = torch.empty(N_BINS + 1, dtype=torch.int64, device=counter.device)
    counter.count(tensor, counts, absolute=absolute, center=center)
    return counts[:-1], counts[-1]


class Counter:
    """Counts tensors one after the other, in buffers that are made once: their size does not depend on the tensors'.

    Attributes:
        device: where it counts.
    """

    def __init__(self, device: torch.device) -> None:
        """Make the buffers for tensors on a device."""
        # Apple's GPUs lack the integer types. Their memory is the host's.
        self.device = torch.device("cpu") if device.type == "mps" else device
        self._size = _PIECE_ON_CPU if self.device.type == "cpu" else _PIECE
        self._rounded = torch.empty(self._size, dtype=torch.bfloat16, device=self.device)
        on_cpu = self.device.type == "cpu"
        self._index = torch.empty(self._size, dtype=torch.int32 if on_cpu else torch.int64, device=self.device)
        self._ones = None if on_cpu else torch.ones(self._size, dtype=torch.int64, device=self.device)

    def count(self, tensor: Tensor, out: Tensor, *, absolute: bool = False, center: float = 0.0) -> None:
        """Count the elements of a tensor in every bin.

        Args:
            tensor: real tensor of any shape, dtype and layout, on the counter's device; not changed.
            out: integers `[N_BINS + 1]` on any device, overwritten: the counts, and at the end the number of elements
                that are inf or NaN. Finite numbers beyond bfloat16's range are counted in the outermost bins.
            absolute: count absolute values.
            center: count differences from this number (of the absolute values, if both are given). The grid is fine
                only around zero; see `center_of`.
        """
        table = self._count(tensor.detach(), absolute=absolute, center=center, clamp=False)
        if _beyond(table) > 0:  # rare: the usual pass does not look for what is merely large
            table = self._count(tensor.detach(), absolute=absolute, center=center, clamp=True)
        positive, negative = table[:_MAGNITUDES], table[_MAGNITUDES:]
        if absolute and center == 0:
            positive += negative
            negative.zero_()
        out[:ZERO_EDGE].copy_(negative[:_FINITE].flip(0))
        out[ZERO_EDGE:N_BINS].copy_(positive[:_FINITE])
        out[N_BINS].copy_(_beyond(table))

    def _count(self, tensor: Tensor, *, absolute: bool, center: float, clamp: bool) -> Tensor:
        """Count by bit pattern: first the positive numbers, then the negative ones, from zero outwards."""
        table = None
        for (piece,) in pieces(self._size, tensor):
            key = piece.to(self.device)
            if center != 0:
                key = (key.abs() if absolute else key).to(torch.float64) - center
            if clamp:
                key = torch.where(key.isinf(), key, key.clamp(-_LARGEST, _LARGEST))
            rounded, index = self._rounded[: key.numel()], self._index[: key.numel()]
            rounded.view(key.shape).copy_(key)
            index.copy_(rounded.view(torch.uint16))
            if self._ones is None:  # on a CPU faster than adding ones; elsewhere it waits for the device
                counts = torch.bincount(index, minlength=2 * _MAGNITUDES)
                table = counts if table is None else table.add_(counts)
            else:
                table = self._zeros() if table is None else table
                table.scatter_add_(0, index, self._ones[: key.numel()])
        return self._zeros() if table is None else table

    def _zeros(self) -> Tensor:
        return torch.zeros(2 * _MAGNITUDES, dtype=torch.int64, device=self.device)


def _beyond(table: Tensor) -> Tensor:
    """Number of elements whose bit pattern is that of inf or NaN."""
    return table[_FINITE:_MAGNITUDES].sum() + table[_MAGNITUDES + _FINITE :].sum()
