"""The training and validation blocks of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradscale.data.blocks import TokenBlocks
from gradscale.data.docstrings_corpus import DocstringsCorpus
from gradscale.data.hub import HubDataset
from gradscale.data.local_files import LocalFiles
from gradscale.data.source import Source, Split
from gradscale.data.stdlib_corpus import StdlibCorpus
from gradscale.data.tokens import tokenize_split
from gradscale.training.arguments import TrainArguments


@dataclass(frozen=True)
class Blocks:
    """Blocks of both splits; `validation` is None where nothing is held out."""

    train: TokenBlocks
    validation: TokenBlocks | None


def open_source(arguments: TrainArguments) -> Source:
    """Return the source of documents that the keys name.

    Raises:
        DataError: it is not there.
    """
    if arguments.corpus is not None:
        return DocstringsCorpus() if arguments.corpus == "docstrings" else StdlibCorpus()
    options: dict[str, Any] = {
        "text_column": arguments.text_column,
        "validation_fraction": arguments.validation_fraction,
    }
    if arguments.train_files is not None:
        return LocalFiles(arguments.train_files, arguments.validation_files, **options)
    name, config_name = arguments.dataset_name or "", arguments.dataset_config_name
    return HubDataset(name, config_name, streaming=arguments.max_train_tokens is not None, **options)


def load_blocks(arguments: TrainArguments, source: Source, tokenizer: Any) -> Blocks:
    """Return the blocks of `source`, tokenized or read from the cache.

    Raises:
        DataError: a document cannot be read, or a split is smaller than one block.
    """

    def blocks(split: Split, max_tokens: int | None) -> TokenBlocks:
        tokens = tokenize_split(source, split, tokenizer, max_tokens=max_tokens)
        return TokenBlocks(tokens, arguments.block_size, name="training" if split == "train" else "validation")

    train = blocks("train", arguments.max_train_tokens)
    no_validation = arguments.corpus is None and not arguments.validation_files and arguments.validation_fraction == 0
    return Blocks(train, None if no_validation else blocks("validation", arguments.max_eval_tokens))
