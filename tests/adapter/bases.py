"""Optimizers to wrap, small problems for them, and optimizers that no factor can be put on."""

import copy

import torch
from torch import nn

SHAPES = [(130, 20), (20, 9), (9,)]
# Of torch's own all that can be wrapped, with weight decay where they have one.
BASES = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, weight_decay=0.1),
    "SGD, momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD, maximize": lambda params: torch.optim.SGD(params, lr=0.05, maximize=True, weight_decay=0.1),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-2, weight_decay=0.1),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1),
    "AdamW, foreach": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1, foreach=True),
    "AdamW, fused": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1, fused=True),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": lambda params: torch.optim.RAdam(params, lr=1e-2),
    "Adamax": lambda params: torch.optim.Adamax(params, lr=1e-2),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=1e-2, weight_decay=0.1),
    "Adadelta": lambda params: torch.optim.Adadelta(params, lr=1.0),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-2, momentum=0.5),
    "Rprop": lambda params: torch.optim.Rprop(params, lr=1e-2),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=1e-2, weight_decay=0.1),
}


class Counting(torch.optim.Optimizer):
    """AdamW as several libraries write it: the step is counted in the param group, and state made when it is empty."""

    def __init__(self, params, lr=1e-2, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state.update(mean=torch.zeros_like(param), square=torch.zeros_like(param))
                param.mul_(1 - group["lr"] * group["weight_decay"])
                state["mean"].lerp_(param.grad, 0.1)
                state["square"].lerp_(param.grad.square(), 0.01)
                param.grad.zero_()  # some do what they like with it
                mean = state["mean"] / (1 - 0.9 ** group["step"])
                square = state["square"] / (1 - 0.99 ** group["step"])
                param.sub_(group["lr"] * mean / (square.sqrt() + 1e-8))


BASES["counts in its groups"] = lambda params: Counting(params, weight_decay=0.1)


class GlobalNorm(torch.optim.SGD):
    """A step whose length is that of all gradients together."""

    @torch.no_grad()
    def step(self, closure=None):
        params = [param for group in self.param_groups for param in group["params"]]
        norm = torch.nn.utils.get_total_norm([param.grad for param in params if param.grad is not None])
        for param in params:
            param.sub_(param.grad / norm * self.param_groups[0]["lr"])


class Averaging(torch.optim.SGD):
    """The state keeps a slow copy of the weights."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                slow = self.state[param].setdefault("slow", param.clone())
                param.sub_(param.grad, alpha=group["lr"])
                slow.lerp_(param, 0.5)
                param.copy_(slow)


class Around(torch.optim.SGD):
    """It steps another optimizer."""

    def __init__(self, params, lr=0.1):
        params = list(params)
        super().__init__(params, lr=lr)
        self.inner = torch.optim.SGD(params, lr=lr)


class Idle(torch.optim.SGD):
    """It does nothing."""

    def step(self, closure=None):
        return None


UNFIT = {
    "depends on the others": lambda params: GlobalNorm(params, lr=0.1),
    "keeps weights (slow)": lambda params: Averaging(params, lr=0.1),
    "keeps weights (ax)": lambda params: torch.optim.ASGD(params),
    "wraps another optimizer: wrap that one": lambda params: Around(params),
    "missing 1 required positional argument: 'closure'": lambda params: torch.optim.LBFGS(params),
    "does not move a tensor": lambda params: Idle(params, lr=0.1),
}


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter((torch.randn(shape, generator=generator) * 0.3).to(dtype)) for shape in shapes]


def gradients(step, params):
    generator = torch.Generator().manual_seed(10 + step)
    return [
        (torch.randn(param.shape, generator=generator) * 0.1 * (1 + place)).to(param)
        for place, param in enumerate(params)
    ]


def run(optimizer, steps=range(7)):
    """Step with gradients that depend on the step alone; the weights after each step."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    course = []
    for step in steps:
        for param, grad in zip(params, gradients(step, params), strict=True):
            param.grad = grad
        optimizer.step()
        course.append([param.detach().clone() for param in params])
    return course


def copied(value):
    return copy.deepcopy(value)


def apart(first, second):
    """The largest difference between two lists of tensors."""
    pairs = zip(first, second, strict=True)
    return max(float((one.detach().double() - other.detach().double()).abs().max()) for one, other in pairs)
