"""Fixed-size blocks cut from a row of tokens: the examples of causal language modelling."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gradscale.data.source import DataError


class TokenBlocks(Dataset[dict[str, Tensor]]):
    """Blocks of `block_size` consecutive tokens; the tokens that do not fill a last block are left out.

    Labels are the tokens themselves: the model shifts them by one.

    Args:
        tokens: token ids of shape `[tokens]`.
        block_size: tokens per block.
        name: what the tokens are, for messages.

    Raises:
        DataError: there are fewer tokens than one block holds.
    """

    def __init__(self, tokens: npt.NDArray[Any], block_size: int, *, name: str) -> None:
        if len(tokens) < block_size:
            raise DataError(f"the {name} data has {len(tokens):,} tokens, fewer than block_size={block_size}")
        self.tokens, self.block_size = tokens, block_size

    def __len__(self) -> int:
        return len(self.tokens) // self.block_size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return `input_ids` and `labels`, int64 of shape `[block_size]`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        block = self.tokens[index * self.block_size : (index + 1) * self.block_size]
        ids = torch.from_numpy(block.astype(np.int64))
        return {"input_ids": ids, "labels": ids.clone()}
