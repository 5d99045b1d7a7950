"""How a pass on a whole tensor was called last time, so that finding its arguments again takes a quarter of the time.

Models adapted by low rank have hundreds of tensors that take less time to update than to prepare. A recipe keeps no
tensor alive, as no strip outlives its step. It holds as long as the state has the same tensors; what can become another
tensor's, or be changed in place by those who move models between devices, is looked at again in every step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from operator import is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradscale.optim.kernels.compiled import Prepared
from gradscale.optim.kernels.constants import Constants
from gradscale.optim.kernels.strips import Strip

_Kind = tuple[torch.dtype, int]


class Recipe(NamedTuple):
    """A call of compiled code on a tensor.

    Attributes:
        call: the code.
        where: dtype and device of the constants.
        state: what the tensor's state holds, in order; None for what is no tensor.
        extras: keys of the per-layer tensors of one step alone that the code takes.
        param: dtype and device of the parameter.
        grad: those of its gradient, if the code takes that.
        moment: where in the state a moment is, and its dtype and device; None if there is none.
        flat: where in all tensors those are that the code takes as vectors.
        pick: chooses the arguments from the constants, the parameter, its gradient, the state, the extras and `sizes`.
        sizes: of the tensors, where the code takes them.
    """

    call: Callable[..., Any]
    where: tuple[torch.dtype, torch.device]
    state: list[Callable[[], Tensor | None]]
    extras: tuple[str, ...]
    param: _Kind
    grad: _Kind | None
    moment: tuple[int, _Kind] | None
    flat: tuple[int, ...]
    pick: itemgetter[Any]
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, prepared: Prepared, strip: Strip, param: Tensor, state: Mapping[str, Any], moment: str | None
    ) -> Recipe:
        """Return the recipe of a call.

        Args:
            prepared: the call, prepared for a strip.
            strip: the strip, which is all of a tensor.
            param: the tensor.
            state: its state.
            moment: key in it of a moment, if there is one.
        """
        keys, extras = list(state), tuple(key for key in strip.per_layer if key not in state)
        place = {"param": 1, "grad": 2, **{key: 3 + at for at, key in enumerate((*keys, *extras))}}
        elements = [1, *(place[key] for key in strip.elementwise), *([] if strip.grad is None else [2])]
        tensors = [0, *(place[key] for key in strip.per_layer), *elements]
        sizes = range(3 + len(keys) + len(extras), 3 + len(keys) + len(extras) + len(prepared.sizes))
        order = [*tensors, *sizes]
        return cls(
            prepared.code.call,
            prepared.where,
            [weakref.ref(value) if isinstance(value, Tensor) else _none for value in state.values()],
            extras,
            _kind(param),
            None if strip.grad is None else _kind(strip.grad),
            None if moment is None else (keys.index(moment), _kind(state[moment])),
            tuple(elements) if prepared.tensors[-1].shape != param.shape else (),
            itemgetter(*[order[at] for at in prepared.code.places]),
            prepared.sizes,
        )

    def arguments(
        self, constants: Constants, param: Tensor, state: Mapping[str, Any], extras: Mapping[str, Tensor]
    ) -> list[Any] | None:
        """Return the arguments of the call, or None where anything is not as it was.

        Args:
            constants: of the step.
            param: the parameter, with its gradient, in the shape that it had.
            state: its state.
            extras: per-layer tensors of the step alone.
        """
        values, grad = [*state.values()], param.grad
        if len(values) != len(self.state) or not all(map(is_, values, [known() for known in self.state])):
            return None
        if len(extras) != len(self.extras) or _kind(param) != self.param or not param.is_contiguous():
            return None
        if self.grad is not None and (type(grad) is not Tensor or _kind(grad) != self.grad or not grad.is_contiguous()):
            return None
        if self.moment is not None and _kind(values[self.moment[0]]) != self.moment[1]:
            return None
        known = [constants.tensor(self.where), param, grad, *values, *[extras[key] for key in self.extras], *self.sizes]
        for at in self.flat:
            known[at] = known[at].view(-1)
        return list(self.pick(known))


def _kind(tensor: Tensor) -> _Kind:
    return tensor.dtype, tensor.get_device()


def _none() -> None:
    return None
