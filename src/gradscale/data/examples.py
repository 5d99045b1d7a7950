"""Documents that stay apart: an example of a fine-tuning set is one document, cut or filled up to a fixed length."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gradscale.data.source import DataError

_IGNORED = -100  # the label that cross entropy leaves out


class DocumentExamples(Dataset[dict[str, Tensor]]):
    """One example per document: its first `block_size` tokens, the end-of-text token included where it fits.

    Rows are filled up to `block_size` at their end; what is filled up is not attended to and has no label.

    Args:
        tokens: token ids of shape `[tokens]`, an end-of-text token after each document.
        block_size: tokens per row.
        eos_token_id: the end-of-text token.
        name: what the tokens are, for messages.

    Raises:
        DataError: there is no document of two tokens or more.
    """

    def __init__(self, tokens: npt.NDArray[Any], block_size: int, *, eos_token_id: int, name: str) -> None:
        ends = np.flatnonzero(tokens == eos_token_id) + 1
        if len(tokens) and (not len(ends) or ends[-1] < len(tokens)):  # the last document was cut by a limit
            ends = np.append(ends, len(tokens))
        starts = np.concatenate([np.zeros(1, dtype=ends.dtype), ends[:-1]]) if len(ends) else ends
        kept = ends - starts > 1
        self.starts, self.ends = starts[kept], ends[kept]
        if not len(self.starts):
            raise DataError(f"the {name} data has no document")
        self.tokens, self.block_size, self.eos_token_id = tokens, block_size, eos_token_id

    @property
    def tokens_per_example(self) -> float:
        """Mean tokens of an example, without what is filled up."""
        return float(np.minimum(self.ends - self.starts, self.block_size).mean())

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, int64 of shape `[block_size]`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self.starts[index])
        document = self.tokens[start : min(int(self.ends[index]), start + self.block_size)].astype(np.int64)
        filled, length = torch.full((self.block_size,), self.eos_token_id), len(document)
        filled[:length] = torch.from_numpy(document)
        mask = (torch.arange(self.block_size) < length).long()
        return {"input_ids": filled, "attention_mask": mask, "labels": filled.masked_fill(mask == 0, _IGNORED)}


def without_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch cut to its longest example; the columns beyond are filled up in every row."""
    longest = int(batch["attention_mask"].sum(dim=1).max())
    return {name: values[:, :longest] for name, values in batch.items()}
