"""The residual networks for CIFAR of He, Zhang, Ren and Sun 2015 (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# The paper's 6n + 2 layers with n = 3, 5, 7, 9, 18, and the two smallest that the rule gives.
DEPTHS = {f"resnet{depth}": (depth - 2) // 6 for depth in (8, 14, 20, 32, 44, 56, 110)}
_WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions around which a shortcut without parameters leads (option A of the paper).

    Where the block halves the image and doubles the channels, the shortcut takes every second pixel and fills the new
    channels, half of them before and half after, with zeros.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self._stride, self._new = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, channels_in, height, width]` to `[batch, channels, height / stride, width / stride]`."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x[:, :, :: self._stride, :: self._stride]
        if self._new:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self._new // 2, self._new - self._new // 2))
        return functional.relu(out + shortcut)


class ResNet(nn.Module):
    """A 3x3 stem, three stages of `blocks` blocks with 16, 32 and 64 channels, a global mean and a linear layer.

    Args:
        blocks: n, blocks per stage; the network has 6n + 2 layers with weights.
        classes: number of classes.
        channels: channels of the images.
    """

    def __init__(self, blocks: int, *, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        layers: list[Block] = []
        width = _WIDTHS[0]
        for stage, next_width in enumerate(_WIDTHS):
            for index in range(blocks):
                layers.append(Block(width, next_width, stride=2 if stage and not index else 1))
                width = next_width
        self.blocks = nn.Sequential(*layers)
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            # He's initialisation, as the paper takes it; without it 30 layers start with vanishing activations.
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Classify images, in the Trainer's convention.

        Args:
            pixel_values: `[batch, channels, height, width]`.
            labels: `[batch]` class numbers, or None.

        Returns:
            `logits` of `[batch, classes]` and, with labels, the mean cross-entropy `loss`, which comes first.
        """
        x = functional.relu(self.bn1(self.conv1(pixel_values)))
        logits: Tensor = self.fc(self.blocks(x).mean(dim=(2, 3)))
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits.float(), labels), "logits": logits}


def build_resnet(name: str, *, classes: int, channels: int, seed: int) -> ResNet:
    """Return the network `name` of `DEPTHS` with the weights that `seed` gives on every machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(DEPTHS[name], classes=classes, channels=channels)


def title(name: str) -> str:
    """Return the name as the tables write it: ResNet20."""
    return name.replace("resnet", "ResNet")
