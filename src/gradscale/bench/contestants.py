"""The optimizers that are compared: named as in the registry, or by the import path of any other."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscale.integrations.optim_args import parse_optim_args
from gradscale.integrations.text_lists import UnbalancedError, split_top_level
from gradscale.options import nearest
from gradscale.registry import REGISTRY, get_entry
from gradscale.training.errors import ConfigError

NEVER = 1 << 40  # an interval that no run reaches
_OURS_AT_MOST = 4 + 4 + 1 + 4  # bytes per parameter: two moments, a label, a compensation


@dataclass(frozen=True)
class Contestant:
    """An optimizer class with options.

    Attributes:
        label: what the user typed.
        cls: the class.
        options: keyword arguments.
        groups: whether there are groupings, which `recluster_interval` times.
    """

    label: str
    cls: type[Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)
    groups: bool = False

    def make(self, params: Sequence[Tensor]) -> Optimizer:
        """Return the optimizer of these tensors, ready to step."""
        own: dict[str, Any] = {"recluster_interval": NEVER} if self.groups else {}
        # Called as any optimizer: torch's own base class takes no options.
        cls: Any = self.cls
        optimizer: Optimizer = cls(list(params), **self.options, **own)
        train = getattr(optimizer, "train", None)
        if callable(train):  # schedule-free optimizers step in training mode only
            train()
        return optimizer

    def group_every(self, optimizer: Optimizer, interval: int) -> None:
        """Let an optimizer made here group every so many steps from now on, if it groups at all."""
        if self.groups:
            for group in optimizer.param_groups:
                group["recluster_interval"] = interval

    def first_grouping(self, optimizer: Optimizer, step: Callable[[], float]) -> float | None:
        """Take one step that groups.

        Args:
            optimizer: the optimizer.
            step: takes the step and returns what it measured.

        Returns:
            What `step` returned; None where there is nothing to group, as with one cluster.
        """
        if not self.groups:
            return None
        self.group_every(optimizer, 1)
        measured = step()
        self.group_every(optimizer, NEVER)
        return None if getattr(optimizer, "grouping_report", None) is None else measured

    def state_bytes(self, device: torch.device, dtype: torch.dtype) -> float:
        """Return bytes of state per parameter: an upper bound where it is ours, else seen in one step of a small layer.

        Raises:
            ConfigError: the optimizer cannot be made with these options, or cannot step.
        """
        layer = torch.zeros(64, 64, device=device, dtype=dtype, requires_grad=True)
        norm = torch.zeros(64, device=device, dtype=dtype, requires_grad=True)
        try:
            optimizer = self.make([layer, norm])
            if self.groups:  # not stepped: what it compiles would be missing from the time of the first step
                return _OURS_AT_MOST
            layer.grad, norm.grad = torch.ones_like(layer), torch.ones_like(norm)
            optimizer.step()
        except Exception as error:  # whatever a foreign optimizer may raise, it is its options that the user can mend
            lines = str(error).splitlines() or [""]
            raise ConfigError(f"{self.label} does not run: {type(error).__name__}: {lines[0]}") from None
        held = sum(value.nbytes for value in optimizer.state[layer].values() if isinstance(value, Tensor))
        return held / layer.numel()


def registered(name: str, optim_args: str | None) -> Contestant:
    """Return an optimizer of the registry.

    Args:
        name: its name.
        optim_args: options as `--optim_args` takes them.

    Raises:
        ConfigError: the name is unknown, or an option is wrong.
    """
    try:
        entry = get_entry(name)
        # A preset's interval is not what was asked for.
        options = parse_optim_args(optim_args, entry, expand=False)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if "recluster_interval" in options:
        raise ConfigError(
            f"--optim_args: recluster_interval={options['recluster_interval']} does not belong here: steps with and "
            "without a grouping are measured apart, and --interval says how often there is one"
        )
    label = f"{name}:{optim_args}" if optim_args else name
    return Contestant(label, entry.load(), options, groups="recluster_interval" in entry.options)


def parse(text: str) -> Contestant:
    """Return what a value of `--against` names: `package.module.Class:option=value,...`, or a name of the registry.

    Raises:
        ConfigError: it cannot be imported, is no optimizer, or an option is malformed.
    """
    path, _, options = text.partition(":")
    try:
        if path in REGISTRY:
            return registered(path, options)
        return Contestant(text, imported(path), _literals(options))
    except ConfigError as error:
        raise ConfigError(f"--against {text}: {str(error).removeprefix('--optim_args: ')}") from None


def imported(path: str) -> type[Optimizer]:
    """Return the optimizer class of an import path.

    Raises:
        ConfigError: it cannot be imported, or is no optimizer.
    """
    module, dot, name = path.rpartition(".")
    if not dot:
        raise ConfigError(
            f"{path!r} is unknown{nearest(path, REGISTRY) or '.'} Expected one of {', '.join(REGISTRY)}, or the path "
            "of a class, as in torch.optim.AdamW"
        )
    try:
        owner = importlib.import_module(module)
    except Exception as error:  # a module that is there may fail in any way
        lines = str(error).splitlines() or [""]
        raise ConfigError(f"{module} cannot be imported: {type(error).__name__}: {lines[0]}") from None
    found = getattr(owner, name, None)
    if found is None:
        raise ConfigError(f"{module} has no {name!r}{nearest(name, vars(owner))}")
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ConfigError(f"{path} is no subclass of torch.optim.Optimizer")
    return found


def _literals(text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    try:
        items = split_top_level(text) if text else []
    except UnbalancedError as error:
        raise ConfigError(f"{text!r} is malformed: {error}") from None
    for item in items:
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name.isidentifier():
            raise ConfigError(f"{item!r} is malformed: expected name=value")
        if name in options:
            raise ConfigError(f"{name} is given twice")
        try:
            options[name] = ast.literal_eval(value.capitalize() if value in ("true", "false", "none") else value)
        except (ValueError, SyntaxError):
            raise ConfigError(
                f"{name}={value} is malformed: expected a number, True, False, None, a tuple, or text in quotes"
            ) from None
    return options
