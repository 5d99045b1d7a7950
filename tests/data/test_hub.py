"""Data sets of the hub, by way of local folders that `load_dataset` reads alike."""

import json

import datasets
import pytest

from gradscale.data.hub import HubDataset
from gradscale.data.source import DataError


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_rows(path, documents):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in documents))


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_of_the_data_set_are_used(tmp_path, documents, streaming):
    write_rows(tmp_path / "set" / "train.jsonl", documents[:50])
    write_rows(tmp_path / "set" / "validation.jsonl", documents[50:])
    source = HubDataset(str(tmp_path / "set"), text_column="body", streaming=streaming)
    assert list(source.documents("train")) == documents[:50]
    assert list(source.documents("validation")) == documents[50:]


def test_documents_are_held_out_where_there_is_no_validation_split(tmp_path, documents):
    write_rows(tmp_path / "set" / "train.jsonl", documents)
    source = HubDataset(str(tmp_path / "set"), text_column="body", validation_fraction=0.2)
    train, validation = set(source.documents("train")), set(source.documents("validation"))
    assert not train & validation and train | validation == set(documents) and validation


def test_errors_name_the_data_set(tmp_path, documents):
    write_rows(tmp_path / "set" / "train.jsonl", documents)
    with pytest.raises(DataError, match="no column 'bodi', did you mean 'body'"):
        list(HubDataset(str(tmp_path / "set"), text_column="bodi").documents("train"))
    with pytest.raises(DataError, match="dataset_name='.*empty' cannot be loaded"):
        (tmp_path / "empty").mkdir()
        list(HubDataset(str(tmp_path / "empty")).documents("train"))
