"""Images in memory, and the batches of a run: which images, in which order, cropped and mirrored how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from gradscale.data.source import DataError, digest

_PADDING = 4  # He et al.: 4 pixels on each side, a random crop of the size before
_SPLIT_SEED = 0  # of held-out images: the same ones whatever the seed of a run


@dataclass(frozen=True)
class LabelledImages:
    """Images of one split.

    Attributes:
        pixels: `[images, channels, height, width]`, uint8.
        labels: `[images]`, int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> LabelledImages:
        """Return the images at `indices`."""
        return LabelledImages(self.pixels[indices], self.labels[indices])


@dataclass(frozen=True)
class ImageData:
    """Both splits of a data set.

    Attributes:
        name: what the images are, for headings; where they are no stand-in for CIFAR-10, it says so.
        train: what is learned from.
        validation: what accuracy is measured on.
        validation_name: which images those are.
        classes: number of classes.
        augment: whether training images are cropped and mirrored at random.
    """

    name: str
    train: LabelledImages
    validation: LabelledImages
    validation_name: str
    classes: int
    augment: bool

    @property
    def channels(self) -> int:
        """Channels of an image: 1 or 3."""
        return int(self.train.pixels.shape[1])

    @property
    def description(self) -> str:
        """One line: sizes, splits, and what is done to the images."""
        _, _, height, width = self.train.pixels.shape
        kind = "grey" if self.channels == 1 else "color"
        changes = "random crops and mirror images" if self.augment else "no augmentation"
        return (
            f"{self.name}: {height} x {width} {kind} images of {self.classes} classes, {len(self.train):,} for "
            f"training ({changes}), {len(self.validation):,} for validation ({self.validation_name})"
        )

    @property
    def fingerprint(self) -> str:
        """Changes whenever a pixel, a label, a split or the augmentation does."""
        parts: list[str | bytes] = ["augment" if self.augment else "as they are"]
        for split in (self.train, self.validation):
            parts += [str(tuple(split.pixels.shape)), split.pixels.numpy().tobytes(), split.labels.numpy().tobytes()]
        return digest(*parts)


def hold_out(images: LabelledImages, fraction: float) -> tuple[LabelledImages, LabelledImages]:
    """Split into training and validation images, `fraction` of every class (rounded) in the latter.

    Raises:
        DataError: a side would be empty.
    """
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    held_out = torch.zeros(len(images), dtype=torch.bool)
    for label in sorted(set(images.labels.tolist())):
        members = (images.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out[members[: round(fraction * len(members))]] = True
    count = int(held_out.sum())
    if not 0 < count < len(images):
        raise DataError(
            f"validation_fraction={fraction:g} of {len(images)} images leaves "
            f"{'no images for validation' if count == 0 else 'none for training'}: set another one"
        )
    return images.take((~held_out).nonzero().flatten()), images.take(held_out.nonzero().flatten())


class Standardize:
    """Makes float images with mean 0 and variance 1 in every channel, as measured on the training images.

    Called with pixels of `[images, channels, height, width]`.
    """

    def __init__(self, train: LabelledImages) -> None:
        # Sums of integers: exact, and in blocks, so that no float copy of all images is made.
        count = train.pixels.numel() // train.pixels.shape[1]
        total, squares = torch.zeros(2, train.pixels.shape[1], dtype=torch.int64)
        for start in range(0, len(train), 4096):
            values = train.pixels[start : start + 4096].to(torch.int32)
            total += values.sum(dim=(0, 2, 3))
            squares += (values * values).sum(dim=(0, 2, 3))
        mean = total.double() / count
        variance = squares.double() / count - mean * mean
        self._mean = mean.float().view(1, -1, 1, 1)
        # A channel of one value alone becomes 0.
        self._scale = variance.clamp(min=1e-6).rsqrt().float().view(1, -1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:  # noqa: D102
        return pixels.float().sub_(self._mean).mul_(self._scale)


class ValidationImages(Dataset[dict[str, Tensor]]):
    """Every image once, in the order of the data."""

    def __init__(self, images: LabelledImages, standardize: Standardize) -> None:
        self._images, self._standardize = images, standardize

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        batch = self._images.take(torch.as_tensor(indices))
        return {"pixel_values": self._standardize(batch.pixels), "labels": batch.labels}


@dataclass(frozen=True)
class _Epoch:
    order: Tensor
    shifts: Tensor
    mirrored: Tensor


class TrainingImages(Dataset[dict[str, Tensor]]):
    """The images of a whole run, one after the other: item i is the i-th image that the run sees.

    The seed and i alone decide what an item is, so that a run which is continued in the middle of an epoch sees what
    the uninterrupted one would have seen, however many processes prepare its batches.

    Args:
        images: the training split.
        standardize: applied before the padding, so that what is padded with is the mean.
        length: images of the run, each epoch's in another order.
        seed: of the order and of the augmentation.
        augment: whether to crop and mirror at random.
    """

    def __init__(
        self, images: LabelledImages, standardize: Standardize, *, length: int, seed: int, augment: bool
    ) -> None:
        self._images, self._standardize = images, standardize
        self._length, self._seed, self._augment = length, seed, augment
        self._epochs: dict[int, _Epoch] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        items: dict[int, list[int]] = {}
        for index in indices:
            items.setdefault(index // len(self._images), []).append(index % len(self._images))
        parts = [self._part(self._epoch(number), torch.as_tensor(inside)) for number, inside in items.items()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _part(self, epoch: _Epoch, inside: Tensor) -> dict[str, Tensor]:
        batch = self._images.take(epoch.order[inside])
        pixels = self._standardize(batch.pixels)
        if self._augment:
            pixels = crop(pixels, epoch.shifts[inside], epoch.mirrored[inside])
        return {"pixel_values": pixels, "labels": batch.labels}

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            # A batch may reach into the next epoch, and none reaches further.
            self._epochs = {kept: epoch for kept, epoch in self._epochs.items() if kept == number - 1}
            seed = int(digest("images", str(self._seed), str(number))[:15], 16)
            generator, count = torch.Generator().manual_seed(seed), len(self._images)
            self._epochs[number] = _Epoch(
                order=torch.randperm(count, generator=generator),
                shifts=torch.randint(0, 2 * _PADDING + 1, (count, 2), generator=generator),
                mirrored=torch.randint(0, 2, (count,), generator=generator).bool(),
            )
        return self._epochs[number]


def crop(pixels: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
    """Return a window of each image, padded with zeros by 4 on all sides, and mirrored where asked for.

    Args:
        pixels: `[batch, channels, height, width]`.
        shifts: `[batch, 2]`, row and column in 0 .. 8 at which the window begins; 4 and 4 is the image itself.
        mirrored: `[batch]`, whether left and right change places.
    """
    _, channels, height, width = pixels.shape
    padded = functional.pad(pixels, (_PADDING,) * 4)
    columns = torch.arange(width).expand(len(pixels), width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + shifts[:, 1:]
    rows = torch.arange(height) + shifts[:, :1]
    image, channel = torch.arange(len(pixels)), torch.arange(channels)
    return padded[
        image[:, None, None, None], channel[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]
