"""A twin of a base optimizer, which steps small tensors so that the base itself is left alone."""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscale.adapter.one_tensor import Group

LR = 1e-2
_COUNTERS = ("step", "steps", "k")


def twin_options(base: Optimizer, group: Group) -> Group:
    """Options of a param group for a twin that has taken no step, with a learning rate that moves something."""
    left_out = ("params", "param_names", *(_COUNTERS if base.state else ()))
    options = {key: value for key, value in group.items() if key not in left_out}
    lr = options.get("lr")
    if lr is not None:
        options["lr"] = torch.full_like(lr, LR) if isinstance(lr, Tensor) else LR
    return options


def twin_of(base: Optimizer, weights: Sequence[Tensor], options: Group) -> Optimizer:
    """Return an optimizer like a base, with one param group of copies of these tensors and no state."""
    twin = object.__new__(type(base))
    twin.__dict__.update(base.__dict__)
    # Nobody's hooks are told of what is tried.
    hooks: dict[str, Any] = {key: OrderedDict() for key in vars(twin) if key.startswith("_optimizer_")}
    twin.__dict__.update(hooks)
    twin.state = defaultdict(dict)
    params = [torch.nn.Parameter(weight.clone()) for weight in weights]
    twin.param_groups = [{**options, "params": params}]
    return twin


def across(grad: Tensor, weights: Tensor) -> Tensor:
    """Return what of a gradient is orthogonal to the weights, row by row.

    AdamP and its kin look for gradients like these, which layers ahead of a normalization have, and step such a layer
    by products over all of it: with random gradients they pass for elementwise.
    """
    rows, along = grad.flatten(1), weights.flatten(1)
    share = (rows * along).sum(dim=1, keepdim=True) / along.square().sum(dim=1, keepdim=True)
    return (rows - share * along).view_as(grad)


class Course(NamedTuple):
    """What stepping a few tensors came to.

    Attributes:
        weights: after each step.
        states: of each tensor, after the last.
        counted: numbers and names in the param group, after the last.
    """

    weights: list[list[Tensor]]
    states: list[dict[str, Any]]
    counted: dict[str, Any]

    def steps(self, start: Sequence[Tensor]) -> list[list[Tensor]]:
        """What each step added to each tensor."""
        befores = [list(start), *self.weights[:-1]]
        return [
            [one - other for one, other in zip(after, before, strict=True)]
            for before, after in zip(befores, self.weights, strict=True)
        ]


def uncompiled() -> AbstractContextManager[Any]:
    """Let optimizers that compile their step run it as it is: seconds would go into code for a few small tensors."""
    known = "torch._dynamo" in sys.modules  # nobody has compiled anything without it, and its import takes a second
    return torch.compiler.set_stance("force_eager") if known else nullcontext()
