"""The numbers of a step, as Python's for eager passes and as one tensor per device for compiled ones."""

from __future__ import annotations

import torch
from torch import Tensor


class Constants:
    """The numbers of one param group in one step: see `constants_of`."""

    def __init__(self, numbers: tuple[float, ...]) -> None:
        self.numbers = numbers
        self._tensors: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def tensor(self, where: tuple[torch.dtype, torch.device]) -> Tensor:
        """Return them as a tensor, `[n]`.

        Args:
            where: its dtype, in which the pass computes, and its device.
        """
        known = self._tensors.get(where)
        if known is None:
            dtype, device = where
            # From pageable memory: the copy to a GPU does not wait for it.
            known = self._tensors[where] = torch.tensor(self.numbers, dtype=dtype).to(device, non_blocking=True)
        return known
