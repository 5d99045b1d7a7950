"""Models whose layers FSDP1 cuts in unusual ways."""

import torch
from torch import nn

from tests.optim.training import make_model


def filled(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
    return model


def nested():
    """Units inside units, and sizes that no number of ranks divides."""
    block = nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13))
    return filled(nn.Sequential(nn.Embedding(41, 7), block, nn.Linear(13, 41, bias=False)))


def narrow():
    """Layers with fewer elements than there are ranks, or as many: on some ranks they have none."""
    one, other = nn.Linear(2, 1), nn.Linear(1, 1, bias=False)
    return filled(nn.Sequential(nn.Embedding(40, 2), one, other, nn.Linear(1, 2, bias=False), nn.Linear(2, 40)))


def tiny():
    """Four numbers in all: the last of three ranks has nothing but padding."""
    return filled(nn.Linear(2, 2, bias=False))


class Tied(nn.Module):
    """An embedding that is the output layer as well."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 12)
        self.middle = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 12))
        self.norm = nn.LayerNorm(12)
        self.head = Output(12, 40)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.norm(self.middle(self.embedding(tokens))))


class Output(nn.Module):
    """A linear layer of another class, which is not made a unit of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, hidden):
        return nn.functional.linear(hidden, self.weight)


def tied():
    return filled(Tied())


class LowRank(nn.Module):
    """A frozen layer with a trainable low-rank addition."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 3, bias=False)
        self.up = nn.Linear(3, base.out_features, bias=False)

    def forward(self, hidden):
        return self.base(hidden) + self.up(self.down(hidden))


def adapted():
    """All that is trained lies between frozen layers: in one unit, on one rank of two or three."""
    model = make_model().requires_grad_(False)
    model[1] = filled(LowRank(model[1])).requires_grad_(True)
    model[1].base.requires_grad_(False)
    return model


def frozen_rest():
    """Units that mix frozen and trainable parameters, and one that is all frozen."""
    model = make_model()
    model[1].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    model[3].requires_grad_(False)
    return model
