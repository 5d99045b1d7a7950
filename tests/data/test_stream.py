"""Streamed blocks are those that are cut from data that are held. Guards against lost, doubled or shifted tokens."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from gradscale.data.blocks import TokenBlocks
from gradscale.data.hub import HubDataset
from gradscale.data.local_files import LocalFiles
from gradscale.data.source import DataError
from gradscale.data.stream import TokenStream
from gradscale.data.tokenizer import trained_tokenizer
from gradscale.data.tokens import tokenize_split


@pytest.fixture
def rows(tmp_path, documents, monkeypatch):
    """A folder of a data set, as JSON Lines and as Parquet, with a split of its own for validation."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, texts in (("train", documents[:50]), ("validation", documents[50:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        for ending in ("jsonl", "parquet"):
            (tmp_path / ending).mkdir(exist_ok=True)
        (tmp_path / "jsonl" / f"{split}.jsonl").write_text(lines)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "parquet" / f"{split}.parquet")
    return tmp_path


@pytest.fixture
def tokenizer(rows):
    files = LocalFiles([str(rows / "jsonl" / "train.jsonl")], validation_fraction=0)
    return AutoTokenizer.from_pretrained(str(trained_tokenizer(files, 300, root=rows / "tokenizers")))


def held(source, tokenizer, block_size, root):
    return TokenBlocks(tokenize_split(source, "train", tokenizer, root=root), block_size, name="training")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_streamed_data_set_gives_the_blocks_of_a_held_one(rows, tokenizer, ending):
    expected = held(HubDataset(str(rows / ending)), tokenizer, 48, rows)
    stream = TokenStream(HubDataset(str(rows / ending), streaming=True), tokenizer, 48)
    streamed = list(stream)
    assert len(streamed) == len(expected) > 5
    for one, other in zip(streamed, (expected[index] for index in range(len(expected))), strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"]) and torch.equal(one["labels"], one["input_ids"])
    # Another epoch is the same again.
    assert all(torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(streamed, stream, strict=True))


def test_workers_share_the_blocks(rows, tokenizer):
    source = LocalFiles([str(rows / "jsonl" / "train.jsonl")], validation_fraction=0)
    stream = TokenStream(source, tokenizer, 32)
    alone = [block["input_ids"].tolist() for block in stream]
    shared = [block["input_ids"][0].tolist() for block in DataLoader(stream, batch_size=1, num_workers=2)]
    assert sorted(shared) == sorted(alone) and len(alone) > 5


def test_what_is_read_is_no_more_than_what_is_needed(tokenizer):
    class Endless:
        description = fingerprint = "endless"
        read = 0

        def documents(self, split):
            while True:
                self.read += 1
                yield "some words of a document without an end\n" * 50

    source = Endless()
    stream = iter(TokenStream(source, tokenizer, 64))
    assert next(stream)["input_ids"].shape == (64,)
    assert source.read <= 2 * 256


def test_documents_are_tokenized_alike_however_long_they_are(tokenizer, monkeypatch):
    """Batches end early where documents are long; no document may be lost there."""
    from gradscale.data import tokens

    texts = [word * count for word in ("a few words ", "others ") for count in (1, 400, 3, 900, 1)]
    whole = list(tokens.encode(iter(texts), tokenizer))
    monkeypatch.setattr(tokens, "_BATCH_CHARACTERS", 500)
    assert list(tokens.encode(iter(texts), tokenizer)) == whole and len(whole) == len(texts)
    assert all(ids[-1] == tokenizer.eos_token_id for ids in whole)


def test_too_little_data_is_refused_before_training(rows, tokenizer):
    source = LocalFiles([str(rows / "jsonl" / "train.jsonl")], validation_fraction=0)
    with pytest.raises(DataError, match="fewer tokens than block_size=1000000"):
        TokenStream(source, tokenizer, 1_000_000)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no eos_token"):
        TokenStream(source, tokenizer, 32)
