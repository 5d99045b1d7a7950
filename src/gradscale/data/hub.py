"""A data set of the Hugging Face hub (or a local data set folder) as a source of documents."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from gradscale.data.local_files import hold_out, missing_column
from gradscale.data.source import DataError, Split, digest


class HubDataset:
    """Documents of `datasets.load_dataset(name, config_name)`.

    The split `validation` of the data set is used; where it has none, `validation_fraction` of the training documents
    is held out by a hash of their contents.

    Args:
        name: hub id, or a local folder that `load_dataset` reads.
        config_name: configuration of the data set, where it has several.
        text_column: the column that holds the text.
        validation_fraction: share of the documents held out where the data set has no validation split.
        streaming: read only what is used, without downloading the rest.

    Raises:
        DataError: the data set cannot be loaded or has no training split.
    """

    def __init__(
        self,
        name: str,
        config_name: str | None = None,
        *,
        text_column: str = "text",
        validation_fraction: float = 0.05,
        streaming: bool = False,
    ) -> None:
        self.name, self.config_name = name, config_name
        self.text_column, self.validation_fraction, self.streaming = text_column, validation_fraction, streaming

    @property
    def description(self) -> str:  # noqa: D102
        return f"the data set {self.name}" + (f" ({self.config_name})" if self.config_name else "")

    @cached_property
    def _splits(self) -> Any:
        from datasets import load_dataset

        try:
            splits = load_dataset(self.name, self.config_name, streaming=self.streaming)
        except Exception as error:  # of many libraries: network, files, scripts
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"dataset_name={self.name!r} cannot be loaded: {reason[0]}") from error
        if "train" not in splits:
            raise DataError(f"dataset_name={self.name!r} has no split 'train'; its splits: {', '.join(splits)}")
        return splits

    @cached_property
    def fingerprint(self) -> str:  # noqa: D102
        parts = [self.name, str(self.config_name), self.text_column, repr(self.validation_fraction)]
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                parts += [str(path.resolve()), str(path.stat().st_size), str(path.stat().st_mtime_ns)]
        elif not self.streaming:
            parts += [f"{split}={data._fingerprint}" for split, data in sorted(self._splits.items())]
        return digest("hub", *parts)

    def documents(self, split: Split) -> Iterator[str]:  # noqa: D102
        if "validation" in self._splits:
            yield from self._read(split)
        elif self.validation_fraction == 0:
            yield from self._read("train") if split == "train" else iter(())
        else:
            yield from hold_out(lambda: self._read("train"), split, self.validation_fraction)

    def _read(self, split: str) -> Iterator[str]:
        for row in self._splits[split]:
            if self.text_column not in row:
                raise DataError(missing_column(self.description, self.text_column, list(row)))
            text = row[self.text_column]
            if text is not None and not isinstance(text, str):
                raise DataError(
                    f"{self.description}: the column {self.text_column!r} holds {type(text).__name__}, not text"
                )
            if text and text.strip():
                yield text
