"""Guards against documents lost or read twice, and against a split that leaks."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradscale.data.local_files import LocalFiles, expand_files, read_documents
from gradscale.data.source import DataError


def write_all(folder, documents):
    """Write the documents in every format and return the files."""
    (folder / "one.txt").write_text(documents[0], encoding="utf-8")
    rows = "".join(json.dumps({"text": text, "id": index}) + "\n" for index, text in enumerate(documents[1:20]))
    (folder / "two.jsonl").write_text(rows + "\n", encoding="utf-8")
    with gzip.open(folder / "three.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in documents[20:40]))
    pq.write_table(pa.table({"text": documents[40:], "id": list(range(len(documents) - 40))}), folder / "four.parquet")
    return [str(folder / name) for name in ("one.txt", "two.jsonl", "three.jsonl.gz", "four.parquet")]


def test_every_format_gives_its_documents(tmp_path, documents):
    files = write_all(tmp_path, documents)
    source = LocalFiles(files, validation_fraction=0)
    assert sorted(source.documents("train")) == sorted(documents)
    assert list(source.documents("validation")) == []


def test_held_out_documents_are_a_deterministic_part(tmp_path, documents):
    files = write_all(tmp_path, documents + documents[:30])  # duplicates: on the same side as their originals
    source = LocalFiles(files, validation_fraction=0.2)
    train, validation = list(source.documents("train")), list(source.documents("validation"))
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(documents + documents[:30])
    assert 0.05 < len(validation) / 90 < 0.4
    assert list(LocalFiles(files[::-1], validation_fraction=0.2).documents("validation")) != []
    assert set(LocalFiles(files[::-1], validation_fraction=0.2).documents("validation")) == set(validation)


def test_a_single_document_gives_its_end(tmp_path):
    lines = [f"line {index}\n" for index in range(200)]
    (tmp_path / "book.txt").write_text("".join(lines))
    source = LocalFiles([str(tmp_path / "book.txt")], validation_fraction=0.1)
    (train,), (validation,) = source.documents("train"), source.documents("validation")
    assert train + validation == "".join(lines)
    assert validation.startswith("line ") and 10 <= validation.count("\n") <= 30


def test_named_validation_files(tmp_path, documents):
    (tmp_path / "a.txt").write_text(documents[0])
    (tmp_path / "b.txt").write_text(documents[1])
    source = LocalFiles([str(tmp_path / "a*.txt")], [str(tmp_path / "b.txt")])
    assert list(source.documents("train")) == [documents[0]]
    assert list(source.documents("validation")) == [documents[1]]
    with pytest.raises(DataError, match="a.txt stands in both train_files and validation_files"):
        LocalFiles([str(tmp_path / "*.txt")], [str(tmp_path / "a.txt")])


def test_the_fingerprint_follows_files_and_options(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first")
    before = LocalFiles([str(path)]).fingerprint
    assert LocalFiles([str(path)]).fingerprint == before
    assert LocalFiles([str(path)], validation_fraction=0.1).fingerprint != before
    path.write_text("second, longer")
    assert LocalFiles([str(path)]).fingerprint != before


def test_globs(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "odd[1].txt"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in expand_files([f"{tmp_path}/**/*.txt"], option="o")] == [
        "a.txt",
        "b.txt",
        "c.txt",
        "odd[1].txt",
    ]
    assert [path.name for path in expand_files([f"{tmp_path}/odd[1].txt", f"{tmp_path}/a.txt"], option="o")] == [
        "odd[1].txt",
        "a.txt",
    ]
    assert len(expand_files([f"{tmp_path}/a.txt", f"{tmp_path}/*.txt"], option="o")) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2: not JSON"),
        (
            "a.jsonl",
            b'{"txet": "x"}\n',
            "line 1: no column 'text', did you mean 'txet'\\? set text_column to one of: txet",
        ),
        ("a.jsonl", b'["x"]\n', "line 1: expected an object"),
        ("a.jsonl", b'{"text": 7}\n', "holds int, not text"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8 text"),
        ("a.txt.gz", b"not gzip", "cannot be read"),
        ("a.parquet", b"not parquet", "is not a Parquet file"),
        ("a.csv", b"x", "has the ending '.csv'; expected one of .txt"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(path, text_column="text"))


def test_bad_parquet_columns(tmp_path):
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text'; set text_column to one of: body, id"):
        list(read_documents(tmp_path / "a.parquet", text_column="text"))
    assert list(read_documents(tmp_path / "a.parquet", text_column="body")) == ["x"]


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match="train_files: no file matches"):
        LocalFiles([f"{tmp_path}/nothing*.txt"])
    with pytest.raises(DataError, match="is a folder; name files"):
        LocalFiles([str(tmp_path)])


def test_too_few_documents_to_hold_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    source = LocalFiles([str(tmp_path / "a.jsonl")], validation_fraction=0.001)
    with pytest.raises(DataError, match="too few to hold out validation_fraction=0.001.*validation_files"):
        list(source.documents("validation"))
