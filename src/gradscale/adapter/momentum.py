"""The momentum of a base, as a tensor like the weights: also where the base keeps it in fewer bits.

Grouping needs numbers, for one layer at a time. Nothing here is kept: what has been made dense goes when it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradscale.sharding.dtensor import local_part

_BLOCK = 256  # elements that share a largest value in the 8-bit state of bitsandbytes
_PREFIX = "state"  # its names: state1, with absmax1 and qmap1


def is_quantized(state: Mapping[str, Any], key: str) -> bool:
    """Whether a tensor of a base's state has to be made dense before it is read.

    Args:
        state: the base's state of one parameter.
        key: the tensor's key.
    """
    value = state.get(key)
    return isinstance(value, Tensor) and (_of_torchao(local_part(value)) or _of_bitsandbytes(state, key))


def dense(state: Mapping[str, Any], key: str) -> Tensor | None:
    """Return the part of a state tensor that is here, with one number for each element of the parameter.

    Args:
        state: the base's state of one parameter.
        key: the tensor's key.

    Returns:
        The tensor itself where it has such numbers; a new one, in float32, of the blockwise quantized states of
        bitsandbytes (`state1`, with `absmax1` and `qmap1`) and of torchao (`OptimState8bit`, `OptimState4bit`). None if
        there is nothing of that key, or no tensor.
    """
    value = state.get(key)
    if not isinstance(value, Tensor):
        return None
    local: Any = local_part(value)
    if _of_torchao(local):
        made: Tensor = local.dequantize()
        return made
    return _of_blocks(local, state, key) if _of_bitsandbytes(state, key) else local


def _of_torchao(local: Tensor) -> bool:
    # By what it is made of, and not by name: no library is imported for the question.
    return hasattr(local, "dequantize") and {"codes", "scale", "qmap"} <= set(getattr(local, "tensor_attrs", ()))


def _of_bitsandbytes(state: Mapping[str, Any], key: str) -> bool:
    number, codes = key.removeprefix(_PREFIX), state.get(key)
    if not key.startswith(_PREFIX) or not isinstance(codes, Tensor) or codes.dtype != torch.uint8:
        return False
    return all(isinstance(state.get(f"{part}{number}"), Tensor) for part in ("absmax", "qmap"))


def _of_blocks(codes: Tensor, state: Mapping[str, Any], key: str) -> Tensor:
    from bitsandbytes import functional

    number = key.removeprefix(_PREFIX)
    made: Tensor = functional.dequantize_blockwise(
        codes, absmax=state[f"absmax{number}"], code=state[f"qmap{number}"], blocksize=_BLOCK
    )
    return made
