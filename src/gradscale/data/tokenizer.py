"""A byte-level BPE tokenizer trained on the spot, on training documents only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradscale.data.cache import cached_folder
from gradscale.data.source import DataError, Source, digest

VERSION = "1"
END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte and the end of text
MAX_CHARACTERS = 50_000_000  # merges hardly change beyond, and the memory of the trainer grows


def trained_tokenizer(source: Source, vocab_size: int, *, root: Path | None = None) -> Path:
    """Return the folder of a tokenizer trained on the training documents of `source`, from the cache if it is there.

    Args:
        source: only its split `train` is read, the first 50 million characters of it.
        vocab_size: number of tokens, the 256 bytes and the end of text included.
        root: cache folder instead of the default one.

    Raises:
        DataError: `vocab_size` is too small.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"vocab_size={vocab_size} is not allowed: expected an integer of at least {SMALLEST_VOCABULARY}"
        )
    key = digest("tokenizer", VERSION, source.fingerprint, str(vocab_size))
    return cached_folder("tokenizers", key, lambda folder: _train(source, vocab_size, folder), root=root)


def _train(source: Source, vocab_size: int, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_characters(source.documents("train"), MAX_CHARACTERS), trainer)
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    fast.save_pretrained(folder)


def _first_characters(documents: Iterator[str], limit: int) -> Iterator[str]:
    for document in documents:
        yield document[:limit]
        limit -= len(document)
        if limit <= 0:
            return
