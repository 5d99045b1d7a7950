"""Local text, JSON Lines and Parquet files as a source of documents.

A text file is one document; a row of JSON Lines or Parquet is one. Files ending in `.gz` are read through gzip.
"""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

from gradscale.data.source import DataError, Split, digest, is_held_out
from gradscale.options import nearest

_FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


def expand_files(patterns: Sequence[str], *, option: str) -> list[Path]:
    """Return the files that `patterns` (paths or globs, `**` included) name, sorted, without repetitions.

    Raises:
        DataError: a pattern matches nothing, or a file's ending is not known.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        expanded = str(Path(pattern).expanduser())
        path = Path(expanded)
        if path.is_dir():
            raise DataError(f"{option}: {pattern} is a folder; name files, for example {pattern.rstrip('/')}/*.txt")
        # A literal name first: '[' in a file's name is not a pattern.
        found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(expanded, recursive=True))]
        found = [name for name in found if name.is_file()]
        if not found:
            raise DataError(f"{option}: no file matches {pattern!r}")
        files.update(dict.fromkeys(found))
    for path in files:
        _format(path, option=option)
    return list(files)


class LocalFiles:
    """Documents of local files.

    Without validation files, documents are held out by a hash of their contents, so that equal documents stand on the
    same side; a single document gives its last part.

    Args:
        train_files: paths or globs.
        validation_files: paths or globs, or None to hold out `validation_fraction` of the documents.
        text_column: the column of JSON Lines and Parquet rows that holds the text.
        validation_fraction: share of documents (of characters, for a single document) held out; 0 holds out nothing.

    Raises:
        DataError: a pattern matches nothing, a file's ending is not known, or a file stands in both lists.
    """

    def __init__(
        self,
        train_files: Sequence[str],
        validation_files: Sequence[str] | None = None,
        *,
        text_column: str = "text",
        validation_fraction: float = 0.05,
    ) -> None:
        self.train_files = expand_files(train_files, option="train_files")
        self.validation_files = expand_files(validation_files or [], option="validation_files")
        both = {path.resolve() for path in self.train_files} & {path.resolve() for path in self.validation_files}
        if both:
            raise DataError(f"{min(both)} stands in both train_files and validation_files")
        self.text_column = text_column
        self.validation_fraction = validation_fraction

    @property
    def description(self) -> str:  # noqa: D102
        return f"{len(self.train_files)} training and {len(self.validation_files) or 'no'} validation files"

    @cached_property
    def fingerprint(self) -> str:  # noqa: D102
        parts = [self.text_column, repr(self.validation_fraction)]
        for files in (self.train_files, self.validation_files):
            parts.append("files")
            for path in files:
                status = path.stat()
                parts += [str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)]
        return digest("files", *parts)

    def documents(self, split: Split) -> Iterator[str]:  # noqa: D102
        if self.validation_files:
            yield from self._read(self.train_files if split == "train" else self.validation_files)
        elif self.validation_fraction == 0:
            yield from self._read(self.train_files) if split == "train" else iter(())
        else:
            yield from hold_out(lambda: self._read(self.train_files), split, self.validation_fraction)

    def _read(self, files: Sequence[Path]) -> Iterator[str]:
        for path in files:
            yield from read_documents(path, text_column=self.text_column)


def hold_out(read: Any, split: Split, fraction: float) -> Iterator[str]:
    """Yield the documents of `read()` that belong to `split`; a single document is cut near its end.

    Raises:
        DataError: the documents are so few that none, or every one, would be held out.
    """
    first = list(islice(read(), 2))
    if len(first) == 1:
        cut = first[0].rfind("\n", 0, int(len(first[0]) * (1 - fraction))) + 1
        cut = cut or int(len(first[0]) * (1 - fraction))
        yield first[0][:cut] if split == "train" else first[0][cut:]
        return
    empty = True
    for document in read():
        if is_held_out(document, fraction) == (split == "validation"):
            empty = False
            yield document
    if empty and first:
        raise DataError(
            f"the documents are too few to hold out validation_fraction={fraction:g} of them: the {split} split is "
            "empty; name validation_files, or set another validation_fraction (0 for no validation)"
        )


def read_documents(path: Path, *, text_column: str) -> Iterator[str]:
    """Yield the documents of one file that are not blank.

    Raises:
        DataError: the file cannot be read, a line is malformed, or `text_column` is missing or holds no text.
    """
    reader = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}[_format(path, option="data file")]
    try:
        for document in reader(path, text_column):
            if document.strip():
                yield document
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _format(path: Path, *, option: str) -> str:
    suffixes = path.suffixes
    suffix = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else path.suffix
    if suffix.lower() not in _FORMATS or (path.suffix == ".gz" and suffix.lower() == ".parquet"):
        known = ", ".join(_FORMATS)
        raise DataError(f"{option}: {path} has the ending {path.suffix!r}; expected one of {known}, text also with .gz")
    return _FORMATS[suffix.lower()]


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _read_text(path: Path, text_column: str) -> Iterator[str]:
    with _open(path) as file:
        yield file.read()


def _read_jsonl(path: Path, text_column: str) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected an object with the column {text_column!r}")
            if text_column not in row:
                raise DataError(missing_column(f"{path}, line {number}", text_column, list(row)))
            yield _text(row[text_column], f"{path}, line {number}", text_column)


def _read_parquet(path: Path, text_column: str) -> Iterator[str]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        names = file.schema_arrow.names
        if text_column not in names:
            raise DataError(missing_column(str(path), text_column, names))
        for batch in file.iter_batches(columns=[text_column]):
            for value in batch.column(0).to_pylist():
                yield _text(value, str(path), text_column)
    except ArrowException as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from None


def _text(value: Any, where: str, text_column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: the column {text_column!r} holds {type(value).__name__}, not text; set text_column")
    return value


def missing_column(where: str, text_column: str, names: Sequence[str]) -> str:
    """Return the message about a column that is not there."""
    hint = nearest(text_column, names)
    return f"{where}: no column {text_column!r}{hint or ';'} set text_column to one of: {', '.join(map(str, names))}"
