"""The base class of the named optimizers: construction, options and param groups."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from gradscale.optim.embedding_rate import embedding_factor
from gradscale.optim.kernels.choice import StepKernel
from gradscale.optim.model_ends import embedding_names, end_names, which_layers
from gradscale.optim.param_groups import (
    as_list,
    group_members,
    named_tensors,
    names_of,
    split_by_target,
    tensor_of,
)
from gradscale.optim.pools import check_pool_names, check_pools_anything
from gradscale.optim.report import GroupingReport
from gradscale.optim.rule import Group
from gradscale.optim.step_loop import StepLoop
from gradscale.option_tables import COMMON, LEARNING_RATE, STEP, TORCH_SWITCHES
from gradscale.options import DEFERRED, Integer, Option, OptionError, check_option, check_options
from gradscale.presets import expanded, takes_presets
from gradscale.sharding.roster import Roster

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ScaledOptimizer(StepLoop):
    """Base class of the named optimizers.

    A subclass names its base rule and its scaler and writes an explicit `__init__`; the rest is here, in the step loop
    and in loading.
    """

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        module: nn.Module | None,
        target_modules: str | list[str] | None,
        embedding_lr_factor: float | Literal["auto"],
        switches: Mapping[str, bool | None],
        kernel: str,
    ) -> None:
        """Make the optimizer.

        Args:
            params: tensors, (name, tensor) pairs, or param groups of them.
            defaults: every option of base and scaler, by name.
            module: the model, for parameter names and `target_modules`.
            target_modules: which modules' layers are scaled; None scales all that `scope` does not leave alone.
            embedding_lr_factor: what the learning rate of the input embedding is multiplied by, or "auto".
            switches: `foreach` and its kind, which have nothing to switch.
            kernel: how the step runs: "auto", "compiled" or "eager".
        """
        check_options(switches, TORCH_SWITCHES, owner=type(self).__name__)
        self._kernel = StepKernel(check_option("kernel", kernel, STEP["kernel"]), type(self).__name__)
        if module is not None and not isinstance(module, nn.Module):
            raise OptionError(f"module={module!r} is not allowed: expected a torch.nn.Module")
        if target_modules is not None:
            if module is None:
                raise OptionError(f"target_modules={target_modules!r} needs module=, the model it selects from")
            params = split_by_target(params, module, target_modules)
        factor = check_option("embedding_lr_factor", embedding_lr_factor, STEP["embedding_lr_factor"])
        factor = embedding_factor(factor, module)
        self._embedding_names: frozenset[str] = frozenset()
        self._end_names: frozenset[str] = frozenset()
        if "scope" in defaults:
            defaults = {**defaults, "scope": which_layers(defaults["scope"], known=module is not None)}
        self._roster = Roster()
        self._reset_engine_caches()
        # Weakly: it would keep parameters alive that an engine replaces. For names, also of adapters that join later.
        self._module = None if module is None else weakref.ref(module)
        self._report: GroupingReport | None = None
        super().__init__(params, self._checked({**defaults, "embedding_lr_factor": factor, "scaled": True}))
        check_pools_anything(self.param_groups, self._roster.names())
        self._embedding_names = embedding_names(module, self._roster)
        self._end_names = end_names(module, self._roster)
        self._reset_engine_caches()

    @property
    def grouping_report(self) -> GroupingReport | None:
        """The last grouping: what it saw and decided. None before the first. Not part of `state_dict()`."""
        return self._report

    @property
    def kernel(self) -> str:
        """How the step runs, as given: "auto", "compiled" or "eager". Not part of `state_dict()`."""
        return self._kernel.choice

    @property
    def waits_for_total_steps(self) -> bool:
        """Whether the length of the run was promised and has not come."""
        return any(group["total_steps"] == DEFERRED for group in self.param_groups)

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
        if takes_presets(self.scaler.options):
            param_group = expanded(param_group, beside=self.base.options)
        module = getattr(self, "_module", None)  # an optimizer that was copied or unpickled has none
        module = None if module is None else module()
        if "scope" in param_group:
            param_group = {**param_group, "scope": which_layers(param_group["scope"], known=module is not None)}
        checked = self._checked({**self.defaults, **param_group})
        group = {key: checked[key] for key in param_group}
        if not isinstance(group["params"], set):  # torch has its own word on sets
            group["params"] = as_list(group["params"])
            for tensor in map(tensor_of, group["params"]):
                if isinstance(tensor, Tensor) and tensor.is_complex():
                    raise ValueError(
                        f"{type(self).__name__} does not support complex parameters (there is one in {tensor.dtype}): "
                        "optimize torch.view_as_real of it"
                    )
                if isinstance(tensor, Tensor) and tensor.dtype not in _DTYPES:
                    raise ValueError(f"{type(self).__name__} does not support parameters in {tensor.dtype}")
        names = names_of(module)
        check_pool_names(checked, named_tensors(group["params"], names))
        group["steps"] = max((int(other["steps"]) for other in self.param_groups), default=0)
        super().add_param_group(group)
        added = self.param_groups[-1]
        self._roster.add_group(added, [(name or names.get(p), p) for name, p in group_members(added)])

    def _checked(self, group: Group) -> Group:
        """Return a copy of a group, which has every option, with all of them checked and in canonical type."""
        options = {**COMMON, **self.base.options, **self.scaler.options}
        checked = {**group, **{name: check_option(name, group[name], option) for name, option in options.items()}}
        checked["lr"] = _checked_lr(group["lr"])
        self.base.check(checked)
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
        if torch.compiler.is_compiling():
            # A caller's torch.compile would trace the host's decisions of this step into its graph.
            eagerly: Any = torch.compiler.disable  # untyped in torch
            return cast("float | None", eagerly(self._step)(closure))
        return self._step(closure)


def _checked_lr(lr: Any) -> float | Tensor:
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got shape {list(lr.shape)}")
        check_option("lr", lr.item(), LEARNING_RATE)
        return lr
    return cast(float, check_option("lr", lr, LEARNING_RATE))
