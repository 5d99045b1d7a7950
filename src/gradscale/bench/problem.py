"""Parameters and gradients for every contestant, as far apart as the memory allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.bench.shapes import Workload

# From the best to what needs the least: what the contestants have in common.
NOTHING, GRADIENTS, EVERYTHING = "nothing", "gradients", "parameters and gradients"
LARGEST_PROBE = 1 << 26  # elements, at most, of the tensor by which the memory's speed is measured
_MARGIN = 1.05
_GROUPING = 50 << 20  # bytes at the peak of a grouping of a few layers


class ShortageError(MemoryError):
    """There is not enough memory. The message says how much is needed."""


@dataclass(frozen=True)
class Plan:
    """What is shared between contestants, and the bytes that this needs."""

    shared: str
    needed: int


def plan(
    workload: Workload, dtype: torch.dtype, state_bytes: Sequence[float], available: int | None, *, together: bool
) -> Plan:
    """Return how to lay out a measurement so that it fits into memory.

    Times do not depend on the values, so contestants may share what they must: gradients first, then parameters.

    Args:
        workload: the tensors.
        dtype: theirs.
        state_bytes: per parameter, of each contestant.
        available: bytes; None is taken for enough.
        together: all contestants are in memory at once; otherwise one after the other.

    Raises:
        ShortageError: it does not fit even if everything is shared.
    """
    number, wide = workload.parameters, dtype.itemsize
    states, count = (sum(state_bytes), len(state_bytes)) if together else (max(state_bytes), 1)
    # For a moment: torch's foreach implementations hold a copy of a moment of the whole model; groupings hold counts.
    rest = states * number + max(4 * number, _GROUPING)
    rest += 4 * min(number, LARGEST_PROBE) if together else 0
    sizes = {
        NOTHING: 2 * count * number * wide,
        GRADIENTS: (count + 1) * number * wide,
        EVERYTHING: 2 * number * wide,
    }
    plans = [Plan(shared, round(_MARGIN * (size + rest))) for shared, size in sizes.items()]
    for one in plans:
        if available is None or one.needed <= available:
            return one
    what = f"{count} optimizers, even with parameters and gradients shared" if count > 1 else "one optimizer"
    raise ShortageError(
        f"{workload.name} in {str(dtype).removeprefix('torch.')} needs {plans[-1].needed / 1e9:.1f} GB of memory for "
        f"{what}; {(available or 0) / 1e9:.1f} GB are available"
    )


class Problem:
    """Makes the tensors of one workload: the same values for every contestant."""

    def __init__(self, workload: Workload, dtype: torch.dtype, device: torch.device, shared: str) -> None:
        self._shared = shared
        self._generator = torch.Generator(device).manual_seed(0)
        self._params = [
            torch.randn(shape, generator=self._generator, device=device, dtype=dtype) * 0.02
            for shape in workload.shapes
        ]
        self._grads = [self._gradient(param, index) for index, param in enumerate(self._params)]
        self._taken = False

    def params(self) -> list[Tensor]:
        """Return parameters with gradients, for one contestant."""
        # The first one takes the originals.
        copy_params = self._taken and self._shared != EVERYTHING
        copy_grads = self._taken and self._shared == NOTHING
        self._taken = True
        params = [param.clone() if copy_params else param.detach() for param in self._params]
        for param, grad in zip(params, self._grads, strict=True):
            param.requires_grad_()
            param.grad = grad.clone() if copy_grads else grad
        return params

    def _gradient(self, param: Tensor, index: int) -> Tensor:
        # Layers differ in the size of their gradients, so that there is something to group by.
        scale = 10 ** (-1 - 0.5 * math.sin(index))
        noise = torch.randn(param.shape, generator=self._generator, device=param.device, dtype=param.dtype)
        return noise * scale
