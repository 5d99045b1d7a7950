"""Where images come from: scikit-learn's digits, CIFAR-10 of the hub, or local Parquet files of the hub's layout."""

from __future__ import annotations

import glob
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from gradscale.data.source import DataError
from gradscale.options import nearest
from gradscale.vision.images import ImageData, LabelledImages, hold_out

DIGITS, CIFAR10 = "digits", "cifar10"
HUB_ID = "uoft-cs/cifar10"
_IMAGE_COLUMNS = ("img", "image")
# How the names of a split's files (or of their folders within the one that is given) begin.
_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
_ROWS = 1000  # decoded at a time


def load_images(data: str, *, validation_fraction: float) -> ImageData:
    """Return the images that the key `data` names.

    Raises:
        DataError: they are not there, are no images, or a library is not installed.
    """
    if data == DIGITS:
        return _digits(validation_fraction)
    if data == CIFAR10:
        return _hub()
    return _local(data, validation_fraction)


def _digits(validation_fraction: float) -> ImageData:
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError:
        raise DataError("data=digits needs scikit-learn: pip install 'gradscale[vision]'") from None
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]  # 0 .. 16
    images = LabelledImages(pixels, torch.from_numpy(bunch.target).to(torch.int64))
    train, validation = hold_out(images, validation_fraction)
    return ImageData(
        name="scikit-learn's digits (not CIFAR-10)",
        train=train,
        validation=validation,
        validation_name="held out",
        classes=10,
        augment=False,  # a mirrored 2 is no 2, and a digit fills its 8 x 8 pixels
    )


def _hub() -> ImageData:
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError("data=cifar10 needs datasets: pip install 'gradscale[train]'") from None
    try:
        splits = load_dataset(HUB_ID)
    except Exception as error:  # of many libraries: network, files, proxies
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"data={CIFAR10}: {HUB_ID} cannot be loaded: {reason[0]} (offline: name its Parquet files, or data=digits)"
        ) from error
    read = {
        split: _decode(splits[split].with_format("arrow").iter(batch_size=_ROWS), f"{HUB_ID}, split {split}")
        for split in ("train", "test")
    }
    return _image_data("CIFAR-10", read["train"], read["test"], "the test split")


def _local(data: str, validation_fraction: float) -> ImageData:
    splits = _sort_into_splits(data, _files(data))
    read = {split: _decode(_row_groups(paths), f"data={data}") for split, paths in splits.items() if paths}
    held_out = next((split for split in ("validation", "test") if split in read), None)
    if held_out is None:
        train, validation = hold_out(read["train"], validation_fraction)
        return _image_data(data, train, validation, "held out")
    return _image_data(data, read["train"], read[held_out], f"the files of {held_out}")


def _image_data(name: str, train: LabelledImages, validation: LabelledImages, validation_name: str) -> ImageData:
    if train.pixels.shape[1:] != validation.pixels.shape[1:]:
        shapes = [" x ".join(map(str, split.pixels.shape[1:])) for split in (train, validation)]
        raise DataError(f"{name}: training images are {shapes[0]} (channels, height, width), validation {shapes[1]}")
    return ImageData(
        name=name,
        train=train,
        validation=validation,
        validation_name=validation_name,
        classes=int(max(train.labels.max(), validation.labels.max())) + 1,
        augment=True,
    )


def _files(data: str) -> list[Path]:
    path = Path(data).expanduser()
    if path.is_dir():
        found = sorted(path.rglob("*.parquet"))
        if not found:
            raise DataError(f"data={data!r}: the folder holds no .parquet file")
        return found
    found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    found = [name for name in found if name.is_file()]
    if not found:
        raise DataError(
            f"data={data!r} is neither {CIFAR10} nor {DIGITS}, and no file or folder{nearest(data, (CIFAR10, DIGITS))}"
        )
    for name in found:
        if name.suffix != ".parquet":
            raise DataError(f"data={data!r}: {name} is no .parquet file")
    return found


def _sort_into_splits(data: str, files: list[Path]) -> dict[str, list[Path]]:
    """Return the files of each split by their names, all of them `train` where no name says anything."""
    folder = Path(data).expanduser()
    splits: dict[str, list[Path]] = {split: [] for split in _SPLITS}
    unnamed: list[Path] = []
    for path in files:
        within = path.relative_to(folder).parts if folder.is_dir() else (path.name,)
        split = next((split for part in reversed(within) if (split := _split_of(part))), None)
        (splits[split] if split else unnamed).append(path)
    if len(unnamed) == len(files):
        splits["train"] = unnamed
        return splits
    if unnamed:
        raise DataError(f"data={data!r}: {unnamed[0].name} belongs to no split: its name begins with none of train, "
                        "validation, test, as others do")  # fmt: skip
    if not splits["train"]:
        raise DataError(f"data={data!r}: no file's name begins with train, the split to learn from")
    return splits


def _split_of(name: str) -> str | None:
    word = name.lower().replace("_", "-").split("-")[0].split(".")[0]
    return next((split for split, words in _SPLITS.items() if word in words), None)


def _row_groups(paths: list[Path]) -> Iterator[Any]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    for path in paths:
        try:
            yield from ParquetFile(path).iter_batches(batch_size=_ROWS)
        except (ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{path} cannot be read as Parquet: {reason}") from None


def _decode(tables: Iterable[Any], where: str) -> LabelledImages:
    """Return the images of Arrow tables with a column of encoded images and one of labels."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"{where} needs Pillow: pip install 'gradscale[vision]'") from None
    import numpy as np

    pixels: list[torch.Tensor] = []
    labels: list[int] = []
    mode = ""
    for table in tables:
        names = table.schema.names
        column = next((name for name in _IMAGE_COLUMNS if name in names), None)
        if column is None or "label" not in names:
            raise DataError(f"{where}: expected the columns 'img' or 'image', and 'label'; found {', '.join(names)}")
        for row, (cell, label) in enumerate(
            zip(table.column(column).to_pylist(), table.column("label").to_pylist(), strict=True), start=len(labels)
        ):
            encoded = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(encoded, bytes):
                raise DataError(f"{where}, row {row}: the column {column!r} holds no encoded image (bytes)")
            if not isinstance(label, int) or label < 0:
                raise DataError(f"{where}, row {row}: label {label!r} is no class number")
            try:
                image = Image.open(io.BytesIO(encoded))
                mode = mode or ("L" if image.mode in ("1", "L") else "RGB")
                values = torch.from_numpy(np.array(image.convert(mode)))
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(f"{where}, row {row}: no image: {error}") from None
            values = values[None] if mode == "L" else values.permute(2, 0, 1)
            if pixels and values.shape != pixels[0].shape:
                sizes = [" x ".join(map(str, one.shape[1:])) for one in (values, pixels[0])]
                raise DataError(f"{where}, row {row}: an image of {sizes[0]} pixels beside those of {sizes[1]}")
            pixels.append(values)
            labels.append(label)
    if not pixels:
        raise DataError(f"{where} holds no images")
    return LabelledImages(torch.stack(pixels), torch.tensor(labels))
