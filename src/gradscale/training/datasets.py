"""The training and validation blocks of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradscale.data.blocks import TokenBlocks
from gradscale.data.docstrings_corpus import DocstringsCorpus
from gradscale.data.examples import DocumentExamples
from gradscale.data.hub import HubDataset
from gradscale.data.local_files import LocalFiles
from gradscale.data.source import Source, Split
from gradscale.data.stdlib_corpus import StdlibCorpus
from gradscale.data.stream import TokenStream
from gradscale.data.tokens import tokenize_split
from gradscale.training.arguments import TrainArguments


@dataclass(frozen=True)
class Blocks:
    """Examples of both splits; `validation` is None where nothing is held out."""

    train: TokenBlocks | DocumentExamples | TokenStream
    validation: TokenBlocks | DocumentExamples | None


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
    streaming = arguments.streaming or arguments.max_train_tokens is not None
    return HubDataset(name, config_name, streaming=streaming, **options)


def load_blocks(arguments: TrainArguments, source: Source, tokenizer: Any) -> Blocks:
    """Return the examples of `source`, tokenized or read from the cache, or tokenized while training where it streams.

    Raises:
        DataError: a document cannot be read, or a split is smaller than one block.
    """

    def blocks(split: Split, max_tokens: int | None) -> TokenBlocks | DocumentExamples:
        tokens = tokenize_split(source, split, tokenizer, max_tokens=max_tokens)
        name = "training" if split == "train" else "validation"
        if arguments.packing:
            return TokenBlocks(tokens, arguments.block_size, name=name)
        return DocumentExamples(tokens, arguments.block_size, eos_token_id=tokenizer.eos_token_id, name=name)

    train = (
        TokenStream(source, tokenizer, arguments.block_size)
        if arguments.streaming
        else blocks("train", arguments.max_train_tokens)
    )
    no_validation = arguments.corpus is None and not arguments.validation_files and arguments.validation_fraction == 0
    return Blocks(train, None if no_validation else blocks("validation", arguments.max_eval_tokens))
