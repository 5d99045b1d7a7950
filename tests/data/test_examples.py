"""Documents as examples. Guards against labels on what was filled up, and documents that run into each other."""

import numpy as np
import pytest
import torch
from transformers import default_data_collator

from gradscale.data.examples import DocumentExamples, without_padding
from gradscale.data.source import DataError

END = 0


def examples(*documents, block_size=5, cut=False):
    tokens = np.array([token for document in documents for token in (*document, END)], dtype=np.uint32)
    return DocumentExamples(tokens[:-1] if cut else tokens, block_size, eos_token_id=END, name="training")


def test_each_document_is_a_row_of_its_own():
    data = examples([1, 2], [3, 4, 5, 6, 7, 8], [9])
    assert len(data) == 3 and data.tokens_per_example == pytest.approx((3 + 5 + 2) / 3)
    first, second, third = (data[index] for index in range(3))
    assert first["input_ids"].tolist() == [1, 2, END, END, END]
    assert first["labels"].tolist() == [1, 2, END, -100, -100]  # the first end is to be learned, what fills up is not
    assert first["attention_mask"].tolist() == [1, 1, 1, 0, 0]
    assert second["input_ids"].tolist() == second["labels"].tolist() == [3, 4, 5, 6, 7]
    assert third["labels"].tolist() == [9, END, -100, -100, -100]
    assert first["input_ids"].dtype == torch.int64
    with pytest.raises(IndexError):
        data[3]


def test_a_document_that_a_limit_has_cut_is_kept():
    data = examples([1, 2], [3, 4], cut=True)
    assert data[1]["input_ids"].tolist() == [3, 4, END, END, END] and data[1]["attention_mask"].tolist()[2] == 0


def test_documents_without_a_token_to_learn_are_left_out():
    assert len(examples([], [1, 2], [])) == 1
    for nothing in (examples, lambda: examples([])):
        with pytest.raises(DataError, match="the training data has no document"):
            nothing()


def test_a_batch_is_as_long_as_its_longest_document():
    data = examples([1, 2], [3], block_size=8)
    batch = without_padding(default_data_collator([data[0], data[1]]))
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[1, 2, END], [3, END, END]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[1, 2, END], [3, END, -100]],
    }
