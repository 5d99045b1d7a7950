"""Choose layers by module name: the `target_modules` of optimizers and `--optim_target_modules`.

`check_target_modules` needs neither torch nor a model, so that a malformed value is refused before one is loaded.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gradscale.options import OptionError

if TYPE_CHECKING:
    from torch import nn

_FORMS = (
    "expected a list of module name parts, 'all-linear', a comma list like 'q_proj,v_proj', "
    "or a regular expression for whole module names"
)
# A dot alone does not make a regular expression: module names contain dots.
_METACHARACTERS = set("^$*+?{}[]\\|()")
# What wrappers put into module names: torch.compile, FSDP1, activation checkpointing; in front, DDP and PEFT.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PREFIXES = ("module.", "base_model.model.")


@dataclass(frozen=True)
class TargetModules:
    """A checked selection.

    Attributes:
        form: "list": a module matches if its name contains an item, or an item as a regular expression matches the
            whole name; "regex": the pattern matches the whole name; "all-linear": linear layers.
        patterns: the items, the one pattern, or nothing.
    """

    form: Literal["list", "regex", "all-linear"]
    patterns: tuple[str, ...] = ()


def check_target_modules(value: str | Sequence[str] | None) -> TargetModules | None:
    """Return the selection that `value` describes; None selects every layer.

    Raises:
        OptionError: the value is of another form, an item is empty, or a regular expression is invalid.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _selection_of_text(value)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) for item in value):
        raise OptionError(f"target_modules={value!r} is not allowed: {_FORMS}")
    if len(value) == 1 and value[0].strip().replace("_", "-") == "all-linear":
        return TargetModules("all-linear")
    return _list_selection([item.strip() for item in value], value)


def _selection_of_text(value: str) -> TargetModules:
    text = value.strip()
    if text.replace("_", "-") == "all-linear":
        return TargetModules("all-linear")
    if text.startswith("[") and text.endswith("]"):  # a JSON list; a character class is none
        try:
            items = json.loads(text)
        except json.JSONDecodeError:
            items = None
        if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
            return _list_selection(items, value)
    items = _split_outside_brackets(text)
    if len(items) > 1 or not text or not _METACHARACTERS & set(text):
        return _list_selection(items, value)
    return TargetModules("regex", (_compiled(text).pattern,))


def _list_selection(items: Sequence[str], value: Any) -> TargetModules:
    if not all(items):
        raise OptionError(f"target_modules={value!r} contains an empty name: {_FORMS}")
    for item in items:
        _compiled(item)
    return TargetModules("list", tuple(items))


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise OptionError(f"target_modules: {pattern!r} is not a valid regular expression: {error}") from None


def _split_outside_brackets(text: str) -> list[str]:
    """Split at the commas that can only separate names: outside (), [], {} and not escaped."""
    parts, start, depth, index = [], 0, 0, 0
    while index < len(text):
        character = text[index]
        if character == "\\":
            index += 1
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
        index += 1
    parts.append(text[start:].strip())
    return parts


def select_parameters(module: nn.Module, target_modules: str | Sequence[str] | None) -> list[nn.Parameter]:
    """Return the parameters with 2 or more dimensions that require gradients and that matching modules own directly.

    Names match with and without what torch.compile, DDP, FSDP and PEFT add to them; the parts of a PEFT layer answer
    to the name of the layer that they adapt.

    Args:
        module: the model.
        target_modules: see `check_target_modules`; None selects every such parameter.

    Returns:
        The parameters in the model's order, each once (a tied one if any of its owners matches).

    Raises:
        OptionError: `target_modules` is malformed.
        ValueError: nothing matches; the message names near modules. Or FSDP1 hides the parameters.
    """
    selection = check_target_modules(target_modules)
    owners = list(_named_owners(module))
    if selection is not None:
        _refuse_vectors(module, target_modules)
    if selection is None:
        chosen = [owner for _, owner in owners]
    elif selection.form == "all-linear":
        kinds = _linear_kinds()
        chosen = [owner for _, owner in owners if isinstance(owner, kinds)]
    else:
        for pattern in selection.patterns:
            if not any(_matches(selection.form, pattern, name) for names, _ in owners for name in names):
                raise ValueError(_no_match(pattern, target_modules, owners))
        chosen = [
            owner
            for names, owner in owners
            if any(_matches(selection.form, pattern, name) for pattern in selection.patterns for name in names)
        ]
    parameters: dict[int, nn.Parameter] = {}
    for owner in chosen:
        for parameter in owner._parameters.values():
            if parameter is not None and parameter.requires_grad and _dimensions(parameter) >= 2:
                parameters[id(parameter)] = parameter
    if not parameters and selection is not None:
        raise ValueError(
            f"target_modules={target_modules!r} matches no parameter of 2 or more dimensions that requires gradients"
            f"{_suggestion(str(target_modules), [pair for pair in owners if _has_layers(pair[1])])}"
        )
    return list(parameters.values())


def _has_layers(owner: nn.Module) -> bool:
    return any(_dimensions(param) >= 2 for param in owner._parameters.values() if param is not None)


def _dimensions(parameter: Any) -> int:
    from gradscale.sharding import fsdp1

    if fsdp1.is_flattened(parameter):
        return len(fsdp1.whole_shape(parameter))
    # DeepSpeed's zero.Init leaves an empty placeholder and keeps the real shape here.
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _refuse_vectors(module: nn.Module, target_modules: Any) -> None:
    """Raise ValueError where FSDP1 hides the parameters that would have to be chosen from."""
    from gradscale.sharding import fsdp1

    if any(fsdp1.is_vector(parameter) for parameter in module.parameters()):
        raise ValueError(
            f"target_modules={target_modules!r} cannot choose among parameters that FSDP1 has laid into one vector: "
            "set use_orig_params to true in the FSDP configuration"
        )


def _matches(form: str, pattern: str, name: str) -> bool:
    return (form == "list" and pattern in name) or re.fullmatch(pattern, name) is not None


def _linear_kinds() -> tuple[type[Any], ...]:
    from torch import nn

    # GPT-2 style models use transformers' own transposed linear layer; without transformers nothing can be one.
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return (nn.Linear,) if conv1d is None else (nn.Linear, conv1d)


def _named_owners(module: nn.Module) -> Iterator[tuple[set[str], nn.Module]]:
    """Yield every module with the names that it answers to."""
    adapted: dict[str, str] = {}  # name of a PEFT layer to the name of the layer that it stands for
    for name, owner in module.named_modules(remove_duplicate=False):
        plain = without_wrappers(name)
        if hasattr(owner, "base_layer") and hasattr(owner, "adapter_layer_names"):
            adapted[name] = plain
        names = {name, plain}
        parent = name
        while "." in parent:
            parent = parent.rpartition(".")[0]
            if parent in adapted:
                names.add(adapted[parent])
        yield names, owner


def without_wrappers(name: str) -> str:
    """Return the name of a module or parameter without what wrappers put into it."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _no_match(pattern: str, target_modules: Any, owners: list[tuple[set[str], nn.Module]]) -> str:
    whole = "" if target_modules == pattern else f" (of target_modules={target_modules!r})"
    return f"target module {pattern!r}{whole} matches no module of the model{_suggestion(pattern, owners)}"


def _suggestion(pattern: str, owners: list[tuple[set[str], nn.Module]]) -> str:
    """Return the names of layers nearest to `pattern`, or the model's kinds of layers when none is near."""
    names = [min(names, key=len) for names, owner in owners if any(True for _ in owner.parameters(recurse=False))]
    lasts = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    wanted = re.sub(r"[^\w.]", "", pattern)
    near = difflib.get_close_matches(wanted.rpartition(".")[2], lasts, n=3, cutoff=0.5)
    near += difflib.get_close_matches(wanted, names, n=2, cutoff=0.7)
    if near:
        return "; near names: " + ", ".join(repr(name) for name in dict.fromkeys(near))
    return "; its layers are called " + ", ".join(repr(name) for name in lasts[:12])
