"""Guards against leaks between the splits, runs whose images depend on how they were batched, and wrong crops."""

import pytest
import torch

from gradscale.data.source import DataError
from gradscale.vision.images import (
    ImageData,
    LabelledImages,
    Standardize,
    TrainingImages,
    ValidationImages,
    crop,
    hold_out,
)


def make_images(count=60, *, channels=3, size=8, classes=3, seed=0):
    """Random images, each of them different, with uneven classes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.tensor([0 if index % 2 else index % classes for index in range(count)])
    return LabelledImages(pixels, labels)


def rows(images):
    return {tuple(row) for row in images.pixels.flatten(1).tolist()}


def test_a_split_is_disjoint_complete_stratified_and_the_same_every_time():
    images = make_images(200)
    train, validation = hold_out(images, 0.25)
    assert rows(train) | rows(validation) == rows(images) and not rows(train) & rows(validation)
    for label in range(3):
        everything, held_out = (int((split.labels == label).sum()) for split in (images, validation))
        assert held_out == round(0.25 * everything)
    torch.manual_seed(7)  # whatever the random state, and whatever the seed of a run
    again, _ = hold_out(images, 0.25)
    assert torch.equal(again.pixels, train.pixels) and torch.equal(again.labels, train.labels)


def test_a_split_is_random_within_a_class():
    _, validation = hold_out(LabelledImages(torch.arange(100).view(-1, 1, 1, 1), torch.zeros(100).long()), 0.5)
    assert validation.pixels.flatten().tolist() not in (list(range(50)), list(range(50, 100)), list(range(0, 100, 2)))


@pytest.mark.parametrize(("fraction", "message"), [(0.001, "no images for validation"), (0.999, "none for training")])
def test_a_split_with_an_empty_side_is_refused(fraction, message):
    with pytest.raises(DataError, match=message):
        hold_out(make_images(12), fraction)


def test_every_channel_of_the_training_images_gets_mean_0_and_variance_1():
    images = make_images(5000, size=2)  # more than one block of sums
    images.pixels[:, 1] //= 10
    images.pixels[:, 2] = 7  # nothing to divide by
    out = Standardize(images)(images.pixels).double()
    assert out.dtype == torch.float64 and images.pixels.dtype == torch.uint8
    assert torch.allclose(out.mean(dim=(0, 2, 3)), torch.zeros(3).double(), atol=1e-5)
    assert torch.allclose(out.var(dim=(0, 2, 3), correction=0), torch.tensor([1.0, 1.0, 0.0]).double(), atol=1e-4)


def test_validation_images_are_standardized_as_the_training_images_are():
    train, validation = make_images(40), make_images(10, seed=1)
    batch = ValidationImages(validation, Standardize(train)).__getitems__(range(10))
    mean = train.pixels.double().mean(dim=(0, 2, 3), keepdim=True)
    deviation = train.pixels.double().var(dim=(0, 2, 3), keepdim=True, correction=0).sqrt()
    expected = (validation.pixels.double() - mean) / deviation
    assert torch.allclose(batch["pixel_values"].double(), expected, atol=1e-5)
    assert torch.equal(batch["labels"], validation.labels)


def test_a_crop_is_a_window_of_the_padded_image():
    pixels = torch.rand(9, 3, 6, 5)
    shifts = torch.tensor([[row, column] for row in (0, 4, 8) for column in (0, 4, 7)])
    mirrored = torch.tensor([index % 2 == 1 for index in range(9)])
    out = crop(pixels, shifts, mirrored)
    for index, (row, column) in enumerate(shifts.tolist()):
        padded = torch.zeros(3, 14, 13)
        padded[:, 4:10, 4:9] = pixels[index]
        window = padded[:, row : row + 6, column : column + 5]
        assert torch.equal(out[index], window.flip(2) if mirrored[index] else window), index
    assert torch.equal(out[4], pixels[4])  # a shift of 4 and 4, not mirrored


def training_images(*, seed=0, augment=True, length=150, count=60):
    images = make_images(count)
    return images, TrainingImages(images, Standardize(images), length=length, seed=seed, augment=augment)


def test_every_epoch_has_every_image_once_in_another_order():
    images, dataset = training_images(augment=False, length=120)
    everything = Standardize(images)(images.pixels).flatten(1)
    orders = []
    for epoch in (range(60), range(60, 120)):
        seen = dataset.__getitems__(epoch)
        order = torch.cdist(seen["pixel_values"].flatten(1), everything).argmin(dim=1)
        assert sorted(order.tolist()) == list(range(60))
        assert torch.equal(seen["labels"], images.labels[order])
        orders.append(order)
    assert len(dataset) == 120 and not torch.equal(*orders)


def test_an_image_depends_on_the_seed_and_its_place_alone():
    _, whole = training_images()
    batch = whole.__getitems__(range(150))  # three epochs in one batch
    _, resumed = training_images()
    torch.manual_seed(9)
    for start in (100, 40, 59, 0):  # as a run begins that is continued; a batch may reach into the next epoch
        part = resumed.__getitems__(range(start, start + 32))
        for name in batch:
            assert torch.equal(part[name], batch[name][start : start + 32]), (start, name)
    assert torch.equal(resumed[77]["pixel_values"], batch["pixel_values"][77])
    _, other = training_images(seed=1)
    assert not torch.equal(other.__getitems__(range(150))["pixel_values"], batch["pixel_values"])


def test_augmentation_crops_and_mirrors_everywhere_and_can_be_left_out():
    images, dataset = training_images(length=600)
    plain = training_images(augment=False, length=600)[1].__getitems__(range(600))["pixel_values"]
    changed = dataset.__getitems__(range(600))["pixel_values"]
    # The shift of (4, 4) without a mirror is one of 2 * 81 cases; all others change a random image.
    same = sum(bool(torch.equal(one, two)) for one, two in zip(plain, changed, strict=True))
    assert same < 20
    mirrored = sum(bool(torch.equal(one.flip(2), two)) for one, two in zip(plain, changed, strict=True))
    assert 0 < mirrored < 20
    assert int((changed == 0).all(dim=1).flatten(1).any(dim=1).sum()) > 400  # padding is seen in most


def test_the_description_says_what_the_images_are_and_the_fingerprint_follows_them():
    train, validation = hold_out(make_images(), 0.2)

    def data(train=train, augment=True):
        return ImageData("pictures", train, validation, "held out", classes=3, augment=augment)

    assert "8 x 8 color images of 3 classes, 48 for training (random crops and mirror images), 12" in data().description
    assert "no augmentation" in data(augment=False).description
    changed = LabelledImages(train.pixels.clone(), train.labels)
    changed.pixels[-1, -1, -1, -1] ^= 1
    assert data().fingerprint == data().fingerprint
    assert len({data().fingerprint, data(changed).fingerprint, data(augment=False).fingerprint}) == 3
