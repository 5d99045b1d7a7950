"""A small model, SGG around each third-party base by name, and these bases alone, made by hand from their libraries."""

import torch
from torch import nn

LR, DECAY = 1e-2, 0.1
# Large enough for 8 bits (4096 elements), and one whose blocks are not full.
SHAPES = {"embed": (48, 96), "up": (96, 96), "down": (70, 96), "head": (48, 70)}
OPTIONS = {
    "sgg_adafactor": {},
    "sgg_came": {},
    "sgg_apollo_adamw": {"rank": 8, "update_proj_gap": 3},
    "sgg_muon": {},
    "sgg_adamw_8bit": {},
    "sgg_paged_adamw_8bit": {},
    "sgg_adamw_torch_8bit": {"kernel": "eager"},
    "sgg_adamw_torch_4bit": {"kernel": "eager"},
}


class Model(nn.Module):
    """Its gradients are given, so that it needs no forward pass."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embed = nn.Embedding(*SHAPES["embed"])
        self.up = nn.Linear(96, 96)
        self.down = nn.Linear(96, 70, bias=False)
        self.norm = nn.LayerNorm(70)
        self.head = nn.Linear(70, 48, bias=False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
        self.to(dtype)


def named(name, model, **options):
    from gradscale.registry import get_entry

    options = {"weight_decay": DECAY, "module": model, **OPTIONS[name], **options}
    return get_entry(name).load()(model.named_parameters(), LR, **options)


def alone(name, model):
    """The library's own optimizers of a model, as its documentation makes them."""
    every = list(model.parameters())
    rates = {"lr": LR, "weight_decay": DECAY}
    matrices = [model.up.weight, model.down.weight]
    linear = [*matrices, model.head.weight]
    others = [param for param in every if all(param is not one for one in linear)]
    if name == "sgg_adafactor":
        from transformers.optimization import Adafactor

        return [Adafactor(every, scale_parameter=False, relative_step=False, **rates)]
    if name == "sgg_came":
        from came_pytorch import CAME

        return [CAME(every, **rates)]
    if name == "sgg_apollo_adamw":
        from apollo_torch import APOLLOAdamW

        kind = {"rank": 8, "proj": "random", "update_proj_gap": 3, "scale": 1.0, "proj_type": "std"}
        # In the order of the model, by which the library numbers its random projections.
        groups = [{"params": others}, {"params": linear, **kind, "scale_type": "channel"}]
        return [APOLLOAdamW(groups, **rates)]
    if name == "sgg_muon":
        from pytorch_optimizer import Muon

        rest = [param for param in every if all(param is not one for one in matrices)]
        adamw = {"betas": (0.9, 0.95), "eps": 1e-10, "lr": LR, "weight_decay": DECAY}
        groups = [{"params": rest, "use_muon": False, **adamw}, {"params": matrices, "use_muon": True, **rates}]
        return [Muon(groups, use_adjusted_lr=True)]
    if name in ("sgg_adamw_8bit", "sgg_paged_adamw_8bit"):
        from bitsandbytes.optim import AdamW

        rest = [param for param in every if param is not model.embed.weight]
        return [AdamW(rest, optim_bits=8, **rates), AdamW([model.embed.weight], optim_bits=32, **rates)]
    from torchao.optim import AdamW4bit, AdamW8bit

    kind = AdamW8bit if name.endswith("8bit") else AdamW4bit
    return [kind(every, block_size=256, **rates)]


def run(optimizers, model, steps):
    """Step with gradients that depend on the step alone; the weights after each step."""
    course = []
    for step in steps:
        generator = torch.Generator().manual_seed(10 + step)
        for place, param in enumerate(model.parameters()):
            size = 0.1 * (1 + place) * torch.rand(param.shape, generator=generator)
            param.grad = (torch.randn(param.shape, generator=generator) * size).to(param)
        with torch.compiler.set_stance("force_eager"):
            for optimizer in optimizers:
                optimizer.step()
        course.append({name: param.detach().clone() for name, param in model.named_parameters()})
    return course


def gradient(step, model, wanted):
    """The gradient that `run` gives a parameter."""
    generator = torch.Generator().manual_seed(10 + step)
    for place, (name, param) in enumerate(model.named_parameters()):
        size = 0.1 * (1 + place) * torch.rand(param.shape, generator=generator)
        grad = torch.randn(param.shape, generator=generator) * size
        if name == wanted:
            return grad
    raise KeyError(wanted)
