"""Guards against digits that pass for CIFAR-10, splits that files do not have, and tracebacks for wrong files."""

import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Image, load_dataset

from gradscale.data.source import DataError
from gradscale.vision.sources import HUB_ID, load_images


def pictures(count, *, grey=False, size=6, seed=0):
    shape = (count, size, size) if grey else (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_digits_say_what_they_are_and_are_not_augmented():
    data = load_images("digits", validation_fraction=0.2)
    assert len(data.train) + len(data.validation) == 1797 and data.classes == 10 and data.channels == 1
    assert data.train.pixels.shape[1:] == (1, 8, 8) and data.train.pixels.max() == 16 and not data.augment
    assert len(data.validation) == pytest.approx(0.2 * 1797, abs=5)
    assert "scikit-learn's digits (not CIFAR-10): 8 x 8 grey images" in data.description
    assert data.fingerprint == load_images("digits", validation_fraction=0.2).fingerprint


def test_a_file_without_splits_is_split(write_parquet):
    images = pictures(40)
    path = write_parquet("all.parquet", images, [index % 4 for index in range(40)], column="image")
    data = load_images(str(path), validation_fraction=0.3)
    assert (len(data.train), len(data.validation), data.classes, data.augment) == (28, 12, 4, True)
    both = torch.cat([data.train.pixels, data.validation.pixels])
    assert {tuple(row.flatten().tolist()) for row in both} == {
        tuple(row.transpose(2, 0, 1).flatten().tolist()) for row in images
    }


def test_a_folder_of_the_hubs_layout_keeps_its_splits_and_the_order_of_its_rows(write_parquet, tmp_path):
    first, second, test = pictures(5), pictures(4, seed=1), pictures(3, seed=2)
    write_parquet("cifar/plain_text/train-00000-of-00002.parquet", first, [0, 1, 2, 3, 4])
    write_parquet("cifar/plain_text/train-00001-of-00002.parquet", second, [5, 6, 7, 8])
    write_parquet("cifar/plain_text/test-00000-of-00001.parquet", test, [9, 0, 1])
    for name in ("cifar", "cifar/plain_text/*.parquet", "cifar/**/*.parquet"):
        data = load_images(str(tmp_path / name), validation_fraction=0.5)
        expected = torch.from_numpy(np.concatenate([first, second])).permute(0, 3, 1, 2)
        assert torch.equal(data.train.pixels, expected) and data.train.labels.tolist() == list(range(9))
        assert torch.equal(data.validation.pixels, torch.from_numpy(test).permute(0, 3, 1, 2))
        assert data.validation.labels.tolist() == [9, 0, 1] and data.classes == 10
        assert "the files of test" in data.description
    # A validation split comes before a test split, which then stays unseen.
    write_parquet("cifar/plain_text/validation-00000-of-00001.parquet", second[:2], [3, 3])
    data = load_images(str(tmp_path / "cifar"), validation_fraction=0.5)
    assert data.validation.labels.tolist() == [3, 3] and len(data.train) == 9


def test_grey_images_stay_grey(write_parquet):
    images = pictures(10, grey=True)
    data = load_images(str(write_parquet("grey.parquet", images, [0, 1] * 5)), validation_fraction=0.2)
    assert data.channels == 1 and "grey" in data.description


def test_the_hubs_cifar_is_read_as_local_files_are(write_parquet, monkeypatch):
    train, test = pictures(6), pictures(2, seed=1)
    files = {
        "train": str(write_parquet("train.parquet", train, list(range(6)))),
        "test": str(write_parquet("test.parquet", test, [9, 0])),
    }
    asked = []

    def load(name):
        asked.append(name)
        splits = load_dataset("parquet", data_files=files)
        return DatasetDict({key: split.cast_column("img", Image()) for key, split in splits.items()})

    monkeypatch.setattr("datasets.load_dataset", load)
    data = load_images("cifar10", validation_fraction=0.2)
    assert asked == [HUB_ID] == ["uoft-cs/cifar10"]
    assert torch.equal(data.train.pixels, torch.from_numpy(train).permute(0, 3, 1, 2)) and data.augment
    assert (
        data.validation.labels.tolist() == [9, 0] and data.name == "CIFAR-10" and "the test split" in data.description
    )


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def load(name):
        raise ConnectionError("no route to host\nmany\nlines")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(DataError) as caught:
        load_images("cifar10", validation_fraction=0.2)
    message = str(caught.value)
    assert "uoft-cs/cifar10 cannot be loaded: no route to host" in message and "data=digits" in message
    assert "\n" not in message


@pytest.mark.parametrize(("data", "module"), [("digits", "sklearn.datasets"), ("all.parquet", "PIL")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    data, module, write_parquet, tmp_path, monkeypatch
):
    write_parquet("all.parquet", pictures(4), [0, 1, 0, 1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install 'gradscale\[vision\]'"):
        load_images(data, validation_fraction=0.5)


def test_what_is_no_source_is_refused(tmp_path, write_parquet):
    (tmp_path / "empty").mkdir()
    (tmp_path / "images.csv").write_text("a,b\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    write_parquet("mixed/train.parquet", pictures(2), [0, 1])
    write_parquet("mixed/more.parquet", pictures(2), [0, 1])
    write_parquet("only/test.parquet", pictures(2), [0, 1])
    cases = [
        ("cifar", "data='cifar' is neither cifar10 nor digits, and no file or folder, did you mean 'cifar10'?"),
        (tmp_path / "no*.parquet", "and no file or folder"),
        (tmp_path / "empty", "the folder holds no .parquet file"),
        (tmp_path / "images.csv", "is no .parquet file"),
        (tmp_path / "broken.parquet", "cannot be read as Parquet"),
        (tmp_path / "mixed", "more.parquet belongs to no split"),
        (tmp_path / "only", "no file's name begins with train"),
    ]
    for data, message in cases:
        with pytest.raises(DataError) as caught:
            load_images(str(data), validation_fraction=0.5)
        assert message in str(caught.value) and "\n" not in str(caught.value), data


def test_rows_that_are_no_labelled_images_are_refused(write_parquet):
    good = list(pictures(2))
    small = pictures(1, size=4)[0]
    cases = [
        (
            good,
            [0, 1],
            {"column": "picture"},
            "expected the columns 'img' or 'image', and 'label'; found picture, label",
        ),
        (good, [0, 1], {"label_column": "fine_label"}, "and 'label'; found img, fine_label"),
        ([good[0], b"no image"], [0, 1], {}, "row 1: no image"),
        ([good[0], None], [0, 1], {}, "row 1: the column 'img' holds no encoded image"),
        ([good[0], small], [0, 1], {}, "row 1: an image of 4 x 4 pixels beside those of 6 x 6"),
        (good, [0, None], {}, "row 1: label None is no class number"),
        (good, [-1, 0], {}, "row 0: label -1 is no class number"),
        (good, ["cat", "dog"], {}, "label 'cat' is no class number"),
        ([], [], {}, "holds no images"),
    ]
    for number, (images, labels, columns, message) in enumerate(cases):
        path = write_parquet(f"case{number}.parquet", images, labels, **columns)
        with pytest.raises(DataError) as caught:
            load_images(str(path), validation_fraction=0.5)
        assert message in str(caught.value), message


def test_splits_of_different_sizes_are_refused(write_parquet, tmp_path):
    write_parquet("two/train.parquet", pictures(2), [0, 1])
    write_parquet("two/test.parquet", pictures(2, size=4), [0, 1])
    with pytest.raises(DataError, match=r"training images are 3 x 6 x 6 .*, validation 3 x 4 x 4"):
        load_images(str(tmp_path / "two"), validation_fraction=0.5)


def test_bytes_without_a_struct_are_images_too(tmp_path):
    import io

    from PIL import Image as Picture

    buffer = io.BytesIO()
    Picture.fromarray(pictures(1)[0]).save(buffer, "PNG")
    path = tmp_path / "plain.parquet"
    Dataset.from_dict({"image": [buffer.getvalue()] * 4, "label": [0, 0, 1, 1]}).to_parquet(path)
    assert len(load_images(str(path), validation_fraction=0.5).validation) == 2


def test_folders_name_splits_only_within_the_folder_that_is_given(write_parquet, tmp_path):
    write_parquet("test_data/images/train/0.parquet", pictures(4), [0, 1, 0, 1])
    write_parquet("test_data/images/test/0.parquet", pictures(2), [0, 1])
    data = load_images(str(tmp_path / "test_data" / "images"), validation_fraction=0.5)
    assert (len(data.train), len(data.validation)) == (4, 2)
    data = load_images(str(tmp_path / "test_data" / "images" / "train"), validation_fraction=0.5)
    assert (len(data.train), len(data.validation)) == (2, 2) and data.validation_name == "held out"
