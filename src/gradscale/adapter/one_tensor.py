"""Stepping a base optimizer on one tensor at a time, so that what is kept besides never grows with the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]
_MISSING = object()
_OF_MEMBERS = ("params", "param_names")


class OneTensor:
    """A base optimizer that is shown one tensor of a param group at a time.

    What it counts in its param groups (`group["step"]` of many) is written back once all tensors of the step are done,
    so that each of them saw the same.
    """

    def __init__(self, base: Optimizer) -> None:
        self._base = base
        self._counted: dict[int, tuple[Group, Group]] = {}

    def step(self, group: Group, param: Tensor, grad: Tensor, **options: Any) -> None:
        """Let the base update one tensor.

        Args:
            group: its param group, which is not changed.
            param: the tensor.
            grad: the gradient that the base sees; it may change it.
            **options: options of the group that are others for this update.
        """
        own_grad = param.grad
        param.grad = grad
        try:
            self._show(group, [param], options)
        finally:
            param.grad = own_grad

    def count(self, group: Group) -> None:
        """Let the base count a step of a param group none of whose tensors has a gradient here, as it does alone."""
        self._show(group, group["params"], {})

    def _show(self, group: Group, params: list[Tensor], options: Group) -> None:
        alone = {**{key: value for key, value in group.items() if key not in _OF_MEMBERS}, **options, "params": params}
        shown = self._base.param_groups
        self._base.param_groups = [alone]
        try:
            self._base.step()
        finally:
            self._base.param_groups = shown
        counted = {
            key: value
            for key, value in alone.items()
            if key not in (*_OF_MEMBERS, *options) and value is not group.get(key, _MISSING)
        }
        self._counted[id(group)] = group, counted

    def finish(self) -> None:
        """Write back what the base has counted in its param groups in this step."""
        for group, counted in self._counted.values():
            group.update(counted)
        self._counted.clear()

    def forget(self) -> None:
        """Leave the param groups as they are after a step that failed."""
        self._counted.clear()
