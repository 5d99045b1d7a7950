"""Guards against documents that run into each other, and against blocks that repeat or lose tokens."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from gradscale.data.blocks import TokenBlocks
from gradscale.data.source import DataError
from gradscale.data.tokenizer import trained_tokenizer
from gradscale.data.tokens import tokenize_split


@pytest.fixture
def tokenizer(tmp_path, documents, list_source):
    return AutoTokenizer.from_pretrained(trained_tokenizer(list_source(documents), 300, root=tmp_path))


def test_every_document_is_followed_by_the_end_of_text(tmp_path, documents, list_source, tokenizer):
    source = list_source(documents, documents[:3])
    tokens = tokenize_split(source, "train", tokenizer, root=tmp_path)
    assert tokenizer.decode(tokens.tolist()).split(tokenizer.eos_token) == [*documents, ""]
    assert len(tokenize_split(source, "validation", tokenizer, root=tmp_path)) < len(tokens)
    assert source.reads == ["train", "validation"]
    assert (tokenize_split(source, "train", tokenizer, root=tmp_path) == tokens).all()
    assert source.reads == ["train", "validation"]  # from the cache


def test_a_limit_keeps_the_first_tokens(tmp_path, documents, list_source, tokenizer):
    source = list_source(documents)
    everything = tokenize_split(source, "train", tokenizer, root=tmp_path)
    limited = tokenize_split(source, "train", tokenizer, max_tokens=500, root=tmp_path)
    assert (limited == everything[:500]).all() and len(limited) == 500
    assert len(tokenize_split(list_source([]), "train", tokenizer, root=tmp_path)) == 0


def test_blocks_are_consecutive_and_whole():
    blocks = TokenBlocks(np.arange(103, dtype=np.uint32), 10, name="training")
    assert len(blocks) == 10
    assert torch.cat([blocks[index]["input_ids"] for index in range(10)]).tolist() == list(range(100))
    item = blocks[3]
    assert item["labels"].tolist() == item["input_ids"].tolist()  # the model shifts
    assert item["input_ids"].dtype == torch.int64
    with pytest.raises(IndexError):
        blocks[10]


def test_too_little_text():
    with pytest.raises(DataError, match="the validation data has 9 tokens, fewer than block_size=10"):
        TokenBlocks(np.arange(9), 10, name="validation")
