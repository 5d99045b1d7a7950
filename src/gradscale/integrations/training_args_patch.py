"""Extend `transformers.training_args`: the names of `--optim`, `--alsdgc`, and checks of `TrainingArguments`."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType
from typing import Any

from gradscale.integrations.alsdgc_arguments import add_field
from gradscale.integrations.alsdgc_options import parse_alsdgc
from gradscale.integrations.deepspeed_config import sharding_into_vectors, unsupported_settings
from gradscale.integrations.enum_members import add_member
from gradscale.integrations.optim_args import parse_optim_args
from gradscale.optim.target_modules import check_target_modules
from gradscale.options import Option, OptionError, Real, check_option
from gradscale.registry import REGISTRY, OptimizerEntry

_NOT_NEGATIVE = {
    "learning_rate": Option(Real(0.0), None, ""),
    "weight_decay": Option(Real(0.0), None, ""),
}


def patch_training_args(module: ModuleType) -> None:
    """Add the registry's names to `module.OptimizerNames`, `alsdgc` and checks to `module.TrainingArguments`.

    Calling it again changes nothing.

    Raises:
        AttributeError, TypeError, ValueError: this transformers looks different.
    """
    names, arguments = module.OptimizerNames, module.TrainingArguments
    original = arguments.__post_init__
    for entry in REGISTRY.values():
        add_member(names, entry.name.upper(), entry.name)
    add_field(arguments)
    if getattr(original, "_gradscale", False):
        return

    @functools.wraps(original)
    def __post_init__(self: Any) -> None:
        # Before the original, which may already join a process group.
        check_training_args(self)
        parse_alsdgc(self.alsdgc)
        original(self)
        check_deepspeed(self)

    __post_init__._gradscale = True  # type: ignore[attr-defined]  # our own mark
    arguments.__post_init__ = __post_init__


def entry_of(args: Any) -> OptimizerEntry | None:
    """Return the registry's entry of `args.optim` (a name or an `OptimizerNames` member); None if it is not ours."""
    optim = getattr(args, "optim", None)
    return REGISTRY.get(getattr(optim, "value", optim)) if isinstance(optim, str) else None


def check_training_args(args: Any) -> None:
    """Check what `args` says about one of our optimizers; for any other optimizer, do nothing.

    Raises:
        OptionError: an option is unknown, malformed or out of range.
        ImportError: a library that the optimizer needs is missing.
    """
    entry = entry_of(args)
    if entry is None:
        return
    for requirement, pip_name in entry.requires.items():
        if importlib.util.find_spec(requirement) is None:
            raise ImportError(f"--optim {entry.name} needs {requirement}, which is missing: pip install '{pip_name}'")
    try:
        check_target_modules(args.optim_target_modules)
    except OptionError as error:
        raise OptionError(f"--optim_target_modules: {error}") from None
    constructor_options(args, entry)


def check_deepspeed(args: Any) -> None:
    """Check the DeepSpeed configuration that `args` brings (or `accelerate launch` does) for one of our optimizers.

    Raises:
        OptionError: DeepSpeed would not use the optimizer, or not as it should.
    """
    entry, plugin = entry_of(args), getattr(args, "deepspeed_plugin", None)
    if entry is None or plugin is None:
        return
    found = unsupported_settings(plugin.hf_ds_config.config)
    if entry.whole_layers:
        found += sharding_into_vectors(plugin.hf_ds_config.config)
    if found:
        raise OptionError(f"--optim {entry.name} cannot run with this DeepSpeed configuration: {'; '.join(found)}")


def constructor_options(args: Any, entry: OptimizerEntry) -> dict[str, Any]:
    """Return the constructor keywords that `args` gives to the optimizer `entry`, checked.

    `--optim_args` win over the fields of `TrainingArguments`, and these over the registry's defaults for trainers.

    Raises:
        OptionError: an option is unknown, malformed or out of range, or two contradict each other.
    """
    for name, option in _NOT_NEGATIVE.items():
        _check_field(name, getattr(args, name), option)
    options: dict[str, Any] = {"lr": args.learning_rate, **entry.trainer_defaults}
    given = parse_optim_args(args.optim_args, entry)
    for keyword, fields in entry.trainer_fields.items():
        if keyword not in given:
            values = tuple(getattr(args, name) for name in fields)
            label = "/".join(fields)
            options[keyword] = _check_field(label, values if len(fields) > 1 else values[0], entry.options[keyword])
    if args.optim_target_modules is not None and "scope" in options:
        options["scope"] = "all"  # that are chosen
    options |= given
    for check in entry.checks:
        try:
            check({**{name: option.default for name, option in entry.options.items()}, **options})
        except OptionError as error:
            raise OptionError(f"--optim_args: {error}") from None
    return options


def _check_field(label: str, value: Any, option: Option) -> Any:
    try:
        return check_option(label, value, option)
    except OptionError as error:
        hint = ""
        if isinstance(value, str) or (isinstance(value, tuple) and any(isinstance(item, str) for item in value)):
            hint = " (YAML reads 1e-4 as text; write 1.0e-4)"
        raise OptionError(f"--{label}: {error}{hint}") from None
