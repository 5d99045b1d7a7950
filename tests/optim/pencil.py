"""Steps that a test writes down by hand."""

import pytest
import torch


def tensor(*values):
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


def step(optimizer, *grads):
    """One step with these gradients, in the order of the parameters; None for none."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else torch.tensor(grad, dtype=param.dtype)
    optimizer.step()


def near(param, *expected, rel=1e-12):
    assert param.tolist() == pytest.approx(list(expected), rel=rel)
