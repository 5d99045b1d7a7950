"""A few small parameters, an optimizer on them, and steps with gradients that depend on the step alone."""

import torch

from gradscale.optim.sgg_adam import SGGAdamW

SHAPES = [(60, 70), (50,), (1,), (7, 3, 2, 2), (0, 4)]
FEW = [(60, 70), (50,), (40, 30)]  # vectors and matrices; compiling takes seconds for each kind


def make(cls=SGGAdamW, dtype=torch.float32, shapes=SHAPES, **options):
    torch.manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    return params, cls(params, **{"lr": 1e-2, "recluster_interval": 3, "weight_decay": 0.1, **options})


def grads_of(params, step):
    torch.manual_seed(100 + step)
    return [torch.randn(param.shape).mul_(0.1 * (index + 1)).to(param.dtype) for index, param in enumerate(params)]


def run(params, optimizer, steps=range(7)):
    for step in steps:
        for param, grad in zip(params, grads_of(params, step), strict=True):
            param.grad = grad
        optimizer.step()
