"""Passes on strips whose labels or scales are kept in host memory: brought over for the pass, one strip at a time."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gradscale.optim import placement
from gradscale.optim.kernels.compiled import Prepared
from gradscale.optim.kernels.constants import Constants
from gradscale.optim.kernels.eager import run_eagerly
from gradscale.optim.kernels.strips import Strip
from gradscale.optim.kernels.update_pass import RELABEL, UpdatePass


class FromHost(NamedTuple):
    """A pass that is to run.

    Attributes:
        update: the pass.
        strip: the strip, with tensors in host memory among its state.
        constants: see `constants_of`.
        prepared: the call of compiled code, with the same tensors; None to run it eagerly.
    """

    update: UpdatePass
    strip: Strip
    constants: Constants
    prepared: Prepared | None


def is_in_parts(strip: Strip) -> bool:
    """Whether some of its state is not where its parameter is."""
    device = strip.param.device
    return any(placement.is_away(tensor, device) for tensor in (*strip.elementwise.values(), *strip.per_layer.values()))


def run_from_host(arguments: FromHost) -> None:
    """Run a pass, and take labels back that it wrote."""
    update, strip, constants, prepared = arguments
    device, there = strip.param.device, []

    def brought(tensor: Tensor) -> Tensor:
        if not placement.is_away(tensor, device):
            return tensor
        # From pinned memory it does not wait; work on the device is done in the order in which it is asked for.
        copy = tensor.to(device, non_blocking=True, copy=True)
        there.append((tensor, copy))
        return copy

    if prepared is None:
        elementwise = {key: brought(tensor) for key, tensor in strip.elementwise.items()}
        per_layer = {key: brought(tensor) for key, tensor in strip.per_layer.items()}
        run_eagerly((update, strip._replace(elementwise=elementwise, per_layer=per_layer), constants))
    else:
        moved = prepared._replace(tensors=[brought(tensor) for tensor in prepared.tensors])
        prepared.code.call(moved.arguments())
    if RELABEL in strip.per_layer:
        for tensor, copy in there:
            tensor.copy_(copy)
