"""The one step loop: base rule x scaler over a sharding view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from gradscale.optim.loading import StateLoading
from gradscale.optim.param_groups import as_list, group_members, names_of, split_by_target, tensor_of
from gradscale.optim.report import GroupingReport
from gradscale.optim.roster import Roster
from gradscale.optim.rule import Group, Layer, State, arithmetic_dtype
from gradscale.optim.state_io import new_tensor, step_tensor
from gradscale.option_tables import COMMON, LEARNING_RATE, TORCH_SWITCHES
from gradscale.options import Integer, Option, OptionError, check_option, check_options
from gradscale.sharding.reduce import any_rank
from gradscale.sharding.view import Shard, UnsupportedShardingError, local_part, view

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Member:
    """A parameter at its place in `param_groups`, as `step()` finds it."""

    param: Tensor
    group: Group
    group_index: int
    name: str
    shard: Shard


class ScaledOptimizer(StateLoading):
    """Base class of the named optimizers.

    A subclass names its base rule and its scaler and writes an explicit `__init__`; the loop, the state, copying and
    loading are here.
    """

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        module: nn.Module | None,
        target_modules: str | list[str] | None,
        switches: Mapping[str, bool | None],
    ) -> None:
        """Make the optimizer.

        Args:
            params: tensors, (name, tensor) pairs, or param groups of them.
            defaults: every option of base and scaler, by name.
            module: the model, for parameter names and `target_modules`.
            target_modules: which modules' layers are scaled; None scales all.
            switches: `foreach` and its kind, which have nothing to switch.
        """
        check_options(switches, TORCH_SWITCHES, owner=type(self).__name__)
        if module is not None and not isinstance(module, nn.Module):
            raise OptionError(f"module={module!r} is not allowed: expected a torch.nn.Module")
        if target_modules is not None:
            if module is None:
                raise OptionError(f"target_modules={target_modules!r} needs module=, the model it selects from")
            params = split_by_target(params, module, target_modules)
        self._roster = Roster()
        self._module_names = names_of(module)
        self._report: GroupingReport | None = None
        super().__init__(params, self._checked({**defaults, "scaled": True}))
        # Only needed above; it would keep parameters alive that an engine replaces.
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
                        f"{type(self).__name__} does not support complex parameters (there is one in {tensor.dtype}): "
                        "optimize torch.view_as_real of it"
                    )
                if isinstance(tensor, Tensor) and tensor.dtype not in _DTYPES:
                    raise ValueError(f"{type(self).__name__} does not support parameters in {tensor.dtype}")
        group["steps"] = max((int(other["steps"]) for other in self.param_groups), default=0)
        super().add_param_group(group)
        names = getattr(self, "_module_names", {})
        self._roster.add_group([(name or names.get(p), p) for name, p in group_members(self.param_groups[-1])])

    def _checked(self, group: Group) -> Group:
        """Return a copy of a group, which has every option, with all of them checked and in canonical type."""
        options = {**COMMON, **self.base.options, **self.scaler.options}
        checked = {**group, **{name: check_option(name, group[name], option) for name, option in options.items()}}
        checked["lr"] = _checked_lr(group["lr"])
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

    def _step(self, closure: Callable[[], float] | None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members = list(self._members())
        updates = [member for member in members if member.param.grad is not None]
        if not updates:
            return loss
        self._refuse_unsupported(updates)
        # Counted in the groups: no single parameter need have a gradient in every step.
        clock = 1 + max(int(group["steps"]) for group in self.param_groups)
        only_makes_state = clock == 1 and self._only_makes_state(updates)
        due = [not only_makes_state and self.scaler.due(clock, group) for group in self.param_groups]
        # Once per group: reading a tensor on a GPU waits for it.
        rates = [float(group["lr"]) for group in self.param_groups]
        for member in updates:
            self._init_state(member)
        if only_makes_state:
            return loss
        for group in self.param_groups:
            group["steps"] = clock
        for member in updates:
            self.state[member.param]["step"] += 1

        if any(due):
            # A grouping reads the momenta of all layers, today's gradients included, before any of them is applied.
            for member in updates:
                self._accumulate(member)
            report = self._observe(members, due, clock)
            for member in updates:
                self._apply(member, rates[member.group_index])
            if report is not None:
                self._report = report
                self.scaler.warn(report)
        else:
            for member in updates:
                self._accumulate(member)
                self._apply(member, rates[member.group_index])
        return loss

    def _members(self) -> Iterator[Member]:
        for index, group in enumerate(self.param_groups):
            for place, param in enumerate(group["params"]):
                entry = self._roster.find(param, index, place)
                if entry is None:
                    raise UnsupportedShardingError(
                        "an engine put parameters of its own where the optimizer was given none. Train on one process, "
                        "with DDP or with FSDP2, or use an optimizer without scaling (adamw_torch_fused)."
                    )
                yield Member(param, group, index, entry.name, view(param, entry.shape))

    def _refuse_unsupported(self, updates: list[Member]) -> None:
        for member in updates:
            if member.param.grad is not None and member.param.grad.layout != torch.strided:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        if updates[0].param.is_cuda and torch.cuda.is_current_stream_capturing():
            # A graph would replay the kernels of this step and never group again.
            raise RuntimeError(f"{type(self).__name__}.step() cannot be captured in a CUDA graph")

    def _only_makes_state(self, updates: list[Member]) -> bool:
        """Whether this first step is only asked for to have state to load into.

        torch.distributed.checkpoint does that, with a learning rate of 0 and gradients of 0. Such a step must not
        count: not towards the next grouping, and not as one whose run length should be known.
        """
        if any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        moves = any(bool(local_part(cast(Tensor, member.param.grad)).any()) for member in updates)
        return not any_rank(moves, [member.shard for member in updates], updates[0].param.device)

    def _init_state(self, member: Member) -> None:
        param, state = member.param, self.state[member.param]
        if not state:
            state["step"] = step_tensor(0.0)
            slots = self._slots(param, member.group)
            state.update({key: new_tensor(slot, param) for key, slot in slots.items()})

    def _local_state(self, param: Tensor) -> State:
        """State of a parameter with the local parts of its tensors, which share memory with it."""
        return {
            key: local_part(value) if isinstance(value, Tensor) else value for key, value in self.state[param].items()
        }

    def _accumulate(self, member: Member) -> None:
        param, group = local_part(member.param), member.group
        dtype = arithmetic_dtype(param)
        grad = local_part(cast(Tensor, member.param.grad)).to(dtype)
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"] != 0 and not self.base.decoupled_weight_decay:
            grad = grad.add(param.to(dtype), alpha=group["weight_decay"])
        self.base.accumulate(grad, self._local_state(member.param), group)

    def _observe(self, members: list[Member], due: list[bool], clock: int) -> GroupingReport | None:
        layers = []
        for member in members:
            if not self.scaler.scales(member.param, member.group):
                continue
            if member.shard.process_groups:
                # Every rank takes part for every layer, also for one that had no gradient here.
                self._init_state(member)
            elif not self.state.get(member.param) or member.param.is_meta:
                continue
            state = self._local_state(member.param)
            momentum = state[self.base.momentum]
            layers.append(
                Layer(
                    name=member.name,
                    numel=member.param.numel(),
                    shard=member.shard,
                    momentum=momentum,
                    state=state,
                    group=member.group,
                    due=due[member.group_index],
                )
            )
        return self.scaler.observe(layers, clock)

    def _apply(self, member: Member, lr: float) -> None:
        param, group, state = local_part(member.param), member.group, self._local_state(member.param)
        dtype = arithmetic_dtype(param)
        update = self.base.direction(state, group, dtype)
        if self.scaler.scales(member.param, group):
            update.mul_(self.scaler.factor(state[self.base.momentum], state, group, dtype))
        value = param if param.dtype == dtype else param.to(dtype)
        if group["weight_decay"] != 0 and self.base.decoupled_weight_decay:
            # Not scaled by the factor: it belongs to the parameter, not to its gradient.
            value.mul_(1 - lr * group["weight_decay"])
        value.add_(update, alpha=-lr)
        if value is not param:
            param.copy_(value)


def _checked_lr(lr: Any) -> float | Tensor:
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got shape {list(lr.shape)}")
        check_option("lr", lr.item(), LEARNING_RATE)
        return lr
    return cast(float, check_option("lr", lr, LEARNING_RATE))
