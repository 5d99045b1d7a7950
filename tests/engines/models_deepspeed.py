"""Models whose layers ZeRO cuts in unusual places. Each says which param groups its optimizer is given."""

import torch
from torch import nn


def fill(model):
    """Deterministic weights, exact in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_((torch.randn(param.shape, generator=generator) * 0.3).bfloat16())


def split(model, *matrices):
    """Param groups: the matrices with these names, the other matrices, and vectors without weight decay."""
    named = {name: param for name, param in model.named_parameters() if param.requires_grad}
    others = [name for name, param in named.items() if len(shape_of(param)) > 1 and name not in sum(matrices, ())]
    vectors = [name for name, param in named.items() if len(shape_of(param)) == 1]
    groups = [{"params": [named[name] for name in names]} for names in (*matrices, others)]
    return [*groups, {"params": [named[name] for name in vectors], "weight_decay": 0.0}]


def shape_of(param):
    return getattr(param, "ds_shape", param.shape)


class Uneven(nn.Module):
    """No layer has a size that 2, 3 or 4 divides; `one` and `two` have fewer elements than there are ranks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(41, 7)
        self.mix = nn.Linear(7, 5)
        self.norm = nn.LayerNorm(5)
        self.one = nn.Parameter(torch.empty(1, 1))
        self.two = nn.Parameter(torch.empty(1, 2))
        self.head = nn.Linear(5, 41, bias=False)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, tokens):
        hidden = self.norm(self.mix(self.embed(tokens)))
        hidden = hidden + nn.functional.pad(self.two, (0, 3)) + self.one
        return self.head(hidden)

    def groups(self):
        # The group of `one` is nothing but padding on all ranks but the first.
        return split(self, ("embed.weight", "two"), ("one",))


class Tied(nn.Module):
    """An embedding that is the output layer as well."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(41, 7)
        self.mix = nn.Linear(7, 7)
        self.norm = nn.LayerNorm(7)
        self.head = nn.Linear(7, 41, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.norm(self.mix(self.embed(tokens))))

    def groups(self):
        return split(self, ("embed.weight",))


class Adapted(nn.Module):
    """A frozen base with low-rank adapters, as LoRA makes them.

    Args:
        all_given: whether the frozen parameters are given to the optimizer as well.
    """

    def __init__(self, all_given=False):
        super().__init__()
        self.all_given = all_given
        self.base = Uneven()
        self.base.requires_grad_(False)
        self.down = nn.Linear(7, 3, bias=False)
        self.up = nn.Linear(3, 5, bias=False)

    def forward(self, tokens):
        base = self.base
        hidden = base.embed(tokens)
        return base.head(base.norm(base.mix(hidden) + self.up(self.down(hidden))))

    def groups(self):
        if not self.all_given:
            return [{"params": [self.down.weight, self.up.weight]}]
        frozen = [param for param in self.base.parameters()]
        return [
            {"params": [*frozen[:3], self.down.weight, *frozen[3:]]},
            {"params": [self.up.weight], "recluster_interval": 3},
        ]


class Branching(nn.Module):
    """`extra` is used for batches whose first token is odd."""

    def __init__(self):
        super().__init__()
        self.base = Uneven()
        self.extra = nn.Linear(7, 7, bias=False)

    def forward(self, tokens, odd):
        base = self.base
        hidden = base.embed(tokens)
        if odd:
            hidden = hidden + self.extra(hidden)
        return base.head(base.norm(base.mix(hidden)) + base.one + nn.functional.pad(base.two, (0, 3)))

    def groups(self):
        return split(self, ("extra.weight", "base.embed.weight"))


SHAPES = {
    "wide": (7, 33),
    "tall": (50, 6),
    "row": (1, 40),
    "one": (1, 1),
    "two": (2, 1),
    "bias": (7,),
    "conv": (5, 2, 3, 3),
    "square": (6, 6),
}


class Fed(nn.Module):
    """Parameters whose gradients are given."""

    def __init__(self):
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def forward(self, gradients):
        return sum((param * gradients[name].to(param.dtype)).sum() for name, param in self.named_parameters())

    def groups(self):
        # Enough in one group for round_robin_gradients to put them into another order on 2, 3 and 4 ranks.
        return split(self, ("conv", "one", "wide", "row", "tall"), ("two",))


def gradients(steps, seed=5):
    """Gradients with heavy tails that any dtype and a sum over a few ranks hold exactly."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        values = {name: torch.randn(shape, generator=generator).pow(3) for name, shape in SHAPES.items()}
        yield {
            name: torch.ldexp((m * 32).round() / 32, e) for name, (m, e) in ((n, v.frexp()) for n, v in values.items())
        }
