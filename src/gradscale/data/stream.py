"""Blocks of a stream of documents: tokenized while training goes on, so that no data set is ever held or written."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from gradscale.data.source import DataError, Source
from gradscale.data.tokens import encode


class TokenStream(IterableDataset[dict[str, Tensor]]):
    """Blocks of `block_size` tokens of the training documents in their order, an end-of-text token after each.

    They are the blocks that `TokenBlocks` cuts from the same documents. Each iteration begins anew with the first
    document; the tokens that do not fill a last block are left out. Workers of a loader take turns, block by block.

    Args:
        source: of which the split `train` is read.
        tokenizer: a transformers tokenizer with an `eos_token`.
        block_size: tokens per block.

    Raises:
        DataError: the tokenizer has no end-of-text token, a document cannot be read, or there is not one block.
    """

    def __init__(self, source: Source, tokenizer: Any, block_size: int) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no eos_token, which has to separate the documents")
        self.source, self.tokenizer, self.block_size = source, tokenizer, block_size
        if next(self._blocks(), None) is None:
            raise DataError(f"the training data has fewer tokens than block_size={block_size}")

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield `input_ids` and `labels`, int64 of shape `[block_size]`; the model shifts the labels by one."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for block in islice(self._blocks(), first, None, step):
            ids = torch.tensor(block, dtype=torch.int64)
            yield {"input_ids": ids, "labels": ids.clone()}

    def _blocks(self) -> Iterator[list[int]]:
        rest: list[int] = []
        for ids in encode(self.source.documents("train"), self.tokenizer):
            rest += ids
            whole = len(rest) // self.block_size * self.block_size
            for start in range(0, whole, self.block_size):
                yield rest[start : start + self.block_size]
            rest = rest[whole:]
