"""Statistics of fixed blocks of a layer's rows, as Adam-mini's partition has them (arXiv 2406.16793, Algorithm 3).

Near the minimum the Hessian of a Transformer is about block-diagonal, with a block for each output row of a matrix (a
neuron, a token of an embedding) or for each head of queries and keys. Here a block is a number of rows that follow each
other, so that the rows of a head are one where that number is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PIECE = 1 << 20  # elements looked at together


def block_statistics(statistic: str, layer: Tensor, block: int, *, absolute: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return size, mean and a statistic of each of B blocks, in float64, exactly and not from a histogram.

    Args:
        statistic: see `gradscale.scalers.statistics`, with a block in the place of a cluster.
        layer: two or more dimensions, of which the first has the rows. B is their number divided by `block`, upwards.
        block: rows in a block; the last may have fewer.
        absolute: of the absolute values.

    Returns:
        int64, float64 and float64, each `[B]`, on the device of `layer`.
    """
    rows = layer.flatten(1)
    row = rows.shape[1]
    at_a_time = max(1, _PIECE // (row * block)) * block
    whole = len(rows) // block * block
    parts = [rows[begin : min(begin + at_a_time, whole)] for begin in range(0, whole, at_a_time)]
    blocks = [part.reshape(-1, block * row) for part in parts]
    if whole < len(rows):
        blocks.append(rows[whole:].reshape(1, -1))

    def numbers(part: Tensor) -> Tensor:
        values = part.to(torch.float64)
        return values.abs() if absolute else values

    sums = torch.cat([numbers(part).sum(dim=1) for part in blocks])
    sizes = torch.cat([torch.full_like(part[:, 0], part.shape[1], dtype=torch.int64) for part in blocks])
    means, mean = sums / sizes, sums.sum() / sizes.sum()
    found, place = [], 0
    for part in blocks:
        found.append(_of_rows(statistic, numbers(part), means[place : place + len(part)], mean))
        place += len(part)
    return sizes, means, torch.cat(found)


def _of_rows(statistic: str, values: Tensor, means: Tensor, mean: Tensor) -> Tensor:
    """Statistic `[B]` of the rows of `[B, N]`, of which `means` `[B]` are known, and that of the whole layer."""
    if statistic == "mda":
        return _median((values - mean).abs_())
    if statistic == "mad":
        return _median((values - _median(values)[:, None]).abs_())
    if statistic == "mean":
        return means.abs()
    if statistic == "l2":
        return values.square().mean(dim=1).sqrt()
    return (values - means[:, None]).square().mean(dim=1)


def _median(values: Tensor) -> Tensor:
    """Medians `[B]` of the rows of `[B, N]`, the mean of the middle two of an even number."""
    ordered = values.sort(dim=1).values
    return (ordered[:, (values.shape[1] - 1) // 2] + ordered[:, values.shape[1] // 2]) / 2
