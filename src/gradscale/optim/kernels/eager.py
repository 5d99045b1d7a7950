"""Passes without a compiler: operation by operation, on pieces that stay in the processor's cache."""

from __future__ import annotations

from gradscale.optim.kernels.constants import Constants
from gradscale.optim.kernels.strips import Strip
from gradscale.optim.kernels.update_pass import UpdatePass

# Elements per piece. On a CPU the tensors of a piece (some 40 bytes per element with those in between) stay in the
# second level cache, and an operation costs a fraction of what it costs from memory. A GPU wants few large operations;
# there the piece only bounds what is allocated in between.
ON_CPU, ELSEWHERE = 1 << 17, 1 << 25


def run_eagerly(arguments: tuple[UpdatePass, Strip, Constants]) -> None:
    """Run a pass on a strip, which is changed."""
    update, strip, constants = arguments
    numbers = constants.numbers
    size = ON_CPU if strip.param.device.type == "cpu" else ELSEWHERE
    if not strip.contiguous or strip.param.numel() <= size:
        update.run(strip.param, strip.grad, {**strip.elementwise, **strip.per_layer}, numbers)
        return
    param, grad = strip.param.view(-1), None if strip.grad is None else strip.grad.view(-1)
    flat = {key: tensor.view(-1) for key, tensor in strip.elementwise.items()}
    for start in range(0, len(param), size):
        piece = slice(start, start + size)
        state = {key: tensor[piece] for key, tensor in flat.items()}
        update.run(param[piece], None if grad is None else grad[piece], state | strip.per_layer, numbers)
