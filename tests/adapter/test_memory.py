"""What the adapter holds for a moment is bounded by one tensor, and does not grow with the model.

Guards against second copies of the model: weights kept aside, factors made ahead, momenta put together.
"""

import pytest
import torch
from torch import nn

from gradscale import SGG
from gradscale.bench.allocations import peak_extra_bytes

SHAPE = (256, 256)
TENSOR = 4 * 256 * 256  # bytes
FEW, MANY = 34, 102  # a grouping takes the statistics of 32 layers at once
STATISTICS = 32 * 65281 * 4  # bytes of their counts
BASES = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3, foreach=False),
    "SGD without momentum": lambda params: torch.optim.SGD(params, lr=1e-3),  # a momentum is kept beside it
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=1e-3, foreach=False),  # reads the weights
}


def peaks(layers, make, **options):
    """Bytes held at the worst moment of a step, and of one that groups, beside weights, gradients and state."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(SHAPE, generator=generator)) for _ in range(layers)]
    for param in params:
        param.grad = torch.randn(SHAPE, generator=generator)
    optimizer = make(params)
    if options:
        optimizer = SGG(optimizer, recluster_interval=2, scale_decay=0.5, **options)
    device = torch.device("cpu")
    for _ in range(2):
        optimizer.step()
    return peak_extra_bytes(optimizer.step, device), peak_extra_bytes(optimizer.step, device)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("labels", ["frozen", "live"])
def test_what_a_step_holds_does_not_grow_with_the_number_of_layers(name, labels):
    few, many = peaks(FEW, BASES[name], labels=labels), peaks(MANY, BASES[name], labels=labels)
    assert many[0] == pytest.approx(few[0], rel=0.05)
    assert many[1] == pytest.approx(few[1], rel=0.05)


@pytest.mark.parametrize("name", BASES)
def test_a_step_holds_a_few_copies_of_one_tensor_beside_what_the_base_holds_for_one(name):
    alone = peaks(1, BASES[name])[0]
    step, grouping = peaks(FEW, BASES[name], labels="frozen")
    assert TENSOR <= step - alone <= 4 * TENSOR
    assert grouping <= step + 2.5 * STATISTICS
