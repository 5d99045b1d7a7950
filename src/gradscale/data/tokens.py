"""Tokenized documents in one flat file per split, written once and read as a memory map."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradscale.data.cache import cached_folder
from gradscale.data.source import DataError, Source, Split, digest

VERSION = "1"
_BATCH = 256  # documents tokenized at a time
_BATCH_CHARACTERS = 1 << 18  # or fewer, where they are long: a stream's first block must not wait for all of them


def tokenize_split(
    source: Source, split: Split, tokenizer: Any, *, max_tokens: int | None = None, root: Path | None = None
) -> npt.NDArray[np.uint32]:
    """Return the documents of a split as one row of token ids, the end-of-text token after each document.

    Args:
        source: the documents.
        split: "train" or "validation".
        tokenizer: a transformers tokenizer with an `eos_token`.
        max_tokens: number of tokens after which reading stops.
        root: cache folder instead of the default one.

    Returns:
        Read-only memory map of shape `[tokens]`.

    Raises:
        DataError: the tokenizer has no end-of-text token, or a document cannot be read.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no eos_token, which has to separate the documents")
    key = digest("tokens", VERSION, source.fingerprint, split, _tokenizer_fingerprint(tokenizer), str(max_tokens))

    def build(folder: Path) -> None:
        with (folder / "tokens.bin").open("wb") as file:
            for ids in _limited(encode(source.documents(split), tokenizer), max_tokens):
                np.asarray(ids, dtype=np.uint32).tofile(file)

    path = cached_folder("tokens", key, build, root=root) / "tokens.bin"
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.zeros(0, dtype=np.uint32)
    return np.memmap(path, dtype=np.uint32, mode="r")


def encode(documents: Iterator[str], tokenizer: Any) -> Iterator[list[int]]:
    """Yield the token ids of each document, the end-of-text token last."""
    for batch in _batches(documents):
        # verbose=False: no warning about documents longer than the model's context, which the blocks cut anyway.
        for ids in tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _limited(rows: Iterator[list[int]], limit: int | None) -> Iterator[list[int]]:
    for row in rows:
        if limit is None:
            yield row
            continue
        yield row[:limit]
        limit -= len(row)
        if limit <= 0:
            return


def _tokenizer_fingerprint(tokenizer: Any) -> str:
    if getattr(tokenizer, "is_fast", False):
        return digest(tokenizer.backend_tokenizer.to_str(), str(tokenizer.eos_token_id))
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return digest(type(tokenizer).__name__, str(tokenizer.name_or_path), vocabulary, str(tokenizer.eos_token_id))
