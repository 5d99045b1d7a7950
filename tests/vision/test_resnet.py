"""Guards against networks that are called ResNet-20 and are another: sizes, shortcuts, and weights from the seed."""

import pytest
import torch
from torch import nn

from gradscale.vision.resnet import Block, build_resnet


def numel(model):
    return sum(param.numel() for param in model.parameters())


def expected_parameters(blocks, channels=3, classes=10):
    """Weights of He et al.'s layers, counted from their description and not from the code."""
    total = 9 * channels * 16 + 2 * 16  # stem, and two numbers per channel for its normalisation
    width = 16
    for stage_width in (16, 32, 64):
        for _ in range(blocks):
            total += 9 * width * stage_width + 9 * stage_width * stage_width + 2 * 2 * stage_width
            width = stage_width
    return total + width * classes + classes  # a shortcut of option A has no parameters


@pytest.mark.parametrize(("name", "blocks", "published"), [("resnet20", 3, 269_722), ("resnet32", 5, 464_154)])
def test_sizes_are_those_of_the_paper(name, blocks, published):
    model = build_resnet(name, classes=10, channels=3, seed=0)
    assert numel(model) == expected_parameters(blocks) == published
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 6 * blocks + 2 == int(name.removeprefix("resnet"))


def test_grey_images_change_the_stem_alone():
    assert numel(build_resnet("resnet20", classes=10, channels=1, seed=0)) == 269_722 - 9 * 2 * 16


def test_stages_halve_the_image_and_double_the_channels():
    model, shapes = build_resnet("resnet20", classes=7, channels=3, seed=0), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    logits = model(torch.randn(2, 3, 32, 32))["logits"]
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3
    assert logits.shape == (2, 7)
    assert model(torch.randn(2, 3, 8, 8))["logits"].shape == (2, 7)


def test_a_shortcut_takes_every_second_pixel_and_fills_with_zeros():
    block = Block(2, 4, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # what is left is the shortcut
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, 0].any() and not out[:, 3].any()


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(5)
    first = build_resnet("resnet8", classes=10, channels=3, seed=1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))  # the caller's random numbers are left alone
    second, third = (build_resnet("resnet8", classes=10, channels=3, seed=seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, third.conv1.weight)


def test_activations_neither_vanish_nor_explode_at_the_start():
    logits = build_resnet("resnet32", classes=10, channels=3, seed=0)(torch.randn(32, 3, 16, 16))["logits"]
    assert 0.1 < logits.std() < 10


def test_the_loss_is_the_mean_cross_entropy_and_comes_first():
    model = build_resnet("resnet8", classes=5, channels=1, seed=0).eval()
    labels = torch.tensor([0, 4, 2])
    out = model(torch.randn(3, 1, 8, 8), labels)
    probabilities = out["logits"].double().softmax(dim=1)[torch.arange(3), labels]
    assert next(iter(out)) == "loss"
    assert out["loss"].item() == pytest.approx(-probabilities.log().mean().item(), rel=1e-5)
