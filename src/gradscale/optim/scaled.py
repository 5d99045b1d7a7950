"""The one step loop: base rule x scaler over a sharding view."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscale.optim.param_groups import as_list, group_members, names_of, split_by_target, tensor_of
from gradscale.optim.report import GroupingReport
from gradscale.optim.rule import BaseRule, Group, Layer, Scaler, Slot, State, arithmetic_dtype
from gradscale.optim.state_io import check_state, hold_tensors, new_tensor, restore_state, step_tensor
from gradscale.option_tables import COMMON
from gradscale.options import Integer, Option, OptionError, Real, check_option
from gradscale.sharding.plain import plain_segments

_LEARNING_RATE = Option(Real(0.0), None, "learning rate")


class ScaledOptimizer(Optimizer):
    """Base class of the named optimizers.

    A subclass names its base rule and its scaler and writes an explicit `__init__`; the loop, the state, copying and
    loading are here.
    """

    base: ClassVar[BaseRule]
    scaler: ClassVar[Scaler]

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        module: nn.Module | None,
        target_modules: str | list[str] | None,
    ) -> None:
        """Make the optimizer.

        Args:
            params: tensors, (name, tensor) pairs, or param groups of them.
            defaults: every option of base and scaler, by name.
            module: the model, for parameter names and `target_modules`.
            target_modules: which modules' layers are scaled; None scales all.
        """
        if target_modules is not None:
            if module is None:
                raise OptionError(f"target_modules={target_modules!r} needs module=, the model it selects from")
            params = split_by_target(params, module, target_modules)
        self._names: dict[Tensor, str] = {}
        self._module_names = names_of(module)
        self._report: GroupingReport | None = None
        super().__init__(params, self._checked({**defaults, "scaled": True}))
        del self._module_names

    @property
    def grouping_report(self) -> GroupingReport | None:
        """The last grouping: what it saw and decided. None before the first. Not part of `state_dict()`."""
        return self._report

    def set_total_steps(self, total_steps: int) -> None:
        """Set the length of the run, in optimizer steps, to which fractional intervals refer.

        Raises:
            OptionError: it is not an integer of at least 1.
        """
        checked = check_option("total_steps", total_steps, Option(Integer(1), None, "optimizer steps of the run"))
        for group in (self.defaults, *self.param_groups):
            group["total_steps"] = checked

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; its options are checked before anything is changed.

        Raises:
            OptionError: an option is out of range, or they contradict each other.
            ValueError: a parameter is complex, or torch refuses the group.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        checked = self._checked({**self.defaults, **param_group})
        group = {key: checked[key] for key in param_group}
        if not isinstance(group["params"], set):  # torch has its own word on sets
            group["params"] = as_list(group["params"])
            for tensor in map(tensor_of, group["params"]):
                if isinstance(tensor, Tensor) and tensor.is_complex():
                    raise ValueError(
                        f"{type(self).__name__} does not support complex parameters (one of shape "
                        f"{list(tensor.shape)} is {tensor.dtype}): optimize torch.view_as_real of it"
                    )
        super().add_param_group(group)
        for name, param in group_members(self.param_groups[-1]):
            position = f"parameter {len(self._names)}"
            self._names[param] = name or getattr(self, "_module_names", {}).get(param) or position

    def _checked(self, group: Group) -> Group:
        """Return a copy of a group, which has every option, with all of them checked and in canonical type."""
        _check_lr(group["lr"])
        options = {**COMMON, **self.base.options, **self.scaler.options}
        checked = {**group, **{name: check_option(name, group[name], option) for name, option in options.items()}}
        self.scaler.check(checked)
        return checked

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one optimizer step.

        Args:
            closure: reevaluates the model and returns the loss; called once, with gradients enabled.

        Raises:
            RuntimeError: a gradient is sparse, the run length of a fractional interval is unknown, a CUDA graph is
                being captured, or an engine that is not supported sharded the parameters. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates = [(group, param) for group in self.param_groups for param in group["params"] if param.grad is not None]
        for _, param in updates:
            self._refuse_unsupported(param)
        if updates and updates[0][1].is_cuda and torch.cuda.is_current_stream_capturing():
            # A graph would replay the kernels of this step and never group again.
            raise RuntimeError(f"{type(self).__name__}.step() cannot be captured in a CUDA graph")
        if not updates:
            return loss

        # The training step, by the tensor that has seen most: layers that had no gradient for a while are grouped with
        # the others.
        clock = 1 + int(max((float(state["step"]) for state in self.state.values() if "step" in state), default=0))
        due = [self.scaler.due(clock, group) for group in self.param_groups]
        for group, param in updates:
            state = self.state[param]
            if not state:
                self._init_state(param, state, group)
            state["step"] += 1

        if any(due):
            # A grouping reads the momenta of all layers, today's gradients included, before any of them is applied.
            for group, param in updates:
                self._accumulate(param, group)
            self._observe([group for group, is_due in zip(self.param_groups, due, strict=True) if is_due], clock)
            for group, param in updates:
                self._apply(param, group)
        else:
            for group, param in updates:
                self._accumulate(param, group)
                self._apply(param, group)
        return loss

    def _refuse_unsupported(self, param: Tensor) -> None:
        if param.grad is not None and param.grad.layout != torch.strided:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        if param not in self.state:
            plain_segments(param, self._names)

    def _slots(self, param: Tensor, group: Group) -> dict[str, Slot]:
        slots = self.base.slots(param, group)
        return {**slots, **self.scaler.slots(param, group)} if self.scaler.scales(param, group) else slots

    def _init_state(self, param: Tensor, state: State, group: Group) -> None:
        state["step"] = step_tensor(0.0)
        state.update({key: new_tensor(slot, param) for key, slot in self._slots(param, group).items()})

    def _accumulate(self, param: Tensor, group: Group) -> None:
        dtype = arithmetic_dtype(param)
        assert param.grad is not None  # the callers select parameters that have one
        grad = param.grad.to(dtype)
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"] != 0 and not self.base.decoupled_weight_decay:
            grad = grad.add(param.to(dtype), alpha=group["weight_decay"])
        self.base.accumulate(grad, self.state[param], group)

    def _observe(self, groups: list[Group], clock: int) -> None:
        layers = [
            Layer(
                name=self._names[param],
                momentum=self.state[param][self.base.momentum],
                state=self.state[param],
                group=group,
            )
            for group in groups
            for param in group["params"]
            if param in self.state and self.scaler.scales(param, group)
        ]
        self._report = self.scaler.observe(layers, clock) or self._report

    def _apply(self, param: Tensor, group: Group) -> None:
        state, dtype, lr = self.state[param], arithmetic_dtype(param), float(group["lr"])
        update = self.base.direction(state, group, dtype)
        if self.scaler.scales(param, group):
            update.mul_(self.scaler.factor(state[self.base.momentum], state, group, dtype))
        value = param if param.dtype == dtype else param.to(dtype)
        if group["weight_decay"] != 0 and self.base.decoupled_weight_decay:
            # Not scaled by the factor: it belongs to the parameter, not to its gradient.
            value.mul_(1 - lr * group["weight_decay"])
        value.add_(update, alpha=-lr)
        if value is not param:
            param.copy_(value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state as saved by `state_dict()`, or by the plain base optimizer (whose layers then start ungrouped).

        Tensors get the dtype that this optimizer keeps them in, whatever the parameter's; loads under
        `torch.load(weights_only=True)` are enough. Pre-hooks see the state dict as given.

        Raises:
            ValueError: the state does not fit the parameters, or is damaged. Nothing has changed then.
        """
        # Registered last, so that it runs after the user's own pre-hooks.
        handle = self.register_load_state_dict_pre_hook(_check_and_hold)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _check_loaded(self, state_dict: Mapping[str, Any]) -> None:
        """Raise ValueError where the state does not fit. Group sizes are torch's to check, before any change."""
        if not {"state", "param_groups"} <= set(state_dict):
            raise ValueError(
                f"this is no optimizer state: expected the keys 'state' and 'param_groups', got {list(state_dict)}. "
                "Nothing was loaded."
            )
        saved_groups = state_dict["param_groups"]
        if [len(group["params"]) for group in saved_groups] != [len(group["params"]) for group in self.param_groups]:
            return
        changed: dict[str, str] = {}
        for saved, group in zip(saved_groups, self.param_groups, strict=True):
            merged = self._checked({**self.defaults, **saved})
            for name in self.scaler.options:
                if merged[name] != group[name]:
                    changed[name] = f"{name}={merged[name]!r} (not {group[name]!r})"
            for key, param in zip(saved["params"], group["params"], strict=True):
                state = state_dict["state"].get(key)
                if state:
                    owner = f"{type(self).__name__}, {self._names.get(param, key)}"
                    required = {"step", *self.base.slots(param, merged)}
                    check_state(state, self._slots(param, merged), required, owner=owner)
        if changed:
            # As in torch, a checkpoint brings its own options. Nobody expects that of those typed for this run.
            warnings.warn(f"the loaded state goes on with its own {', '.join(changed.values())}", stacklevel=5)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_names": self._names, "_report": self._report}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take state from loading, unpickling or copying; options that an older version did not know get defaults."""
        super().__setstate__(state)
        ungrouped = 0
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            for param in group["params"]:
                if self.state.get(param):
                    missing = restore_state(self.state[param], self._slots(param, group), param)
                    ungrouped += "scales" in missing
        if ungrouped:
            warnings.warn(
                f"the loaded state has no groups for {ungrouped} layers (saved by another optimizer, or before their "
                "first step): their scales start at 1 until the next grouping",
                UserWarning,
                stacklevel=3,
            )


def _check_and_hold(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(optimizer, ScaledOptimizer)  # registered by load_state_dict alone
    optimizer._check_loaded(state_dict)
    return hold_tensors(state_dict)


def _check_lr(lr: Any) -> None:
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got shape {list(lr.shape)}")
        lr = lr.item()
    check_option("lr", lr, _LEARNING_RATE)
