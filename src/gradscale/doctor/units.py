"""The units of FSDP: which parameters are flattened together by FSDP1, and where each lies in the vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gradscale.doctor.engine import Engine, Wrapping
from gradscale.doctor.findings import Findings

_ALIGNMENT = 16  # bytes to which FSDP1 aligns parameters with use_orig_params
_PARAM_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Unit:
    """One vector of FSDP1.

    Attributes:
        kind: class of the module.
        begins: where each parameter begins in the vector, by id.
        stretch: elements that each rank holds of it, padding included.
    """

    kind: str
    begins: dict[int, int]
    stretch: int


def fsdp1_units(model: nn.Module, engine: Engine, findings: Findings) -> list[Unit]:
    """Return the units that FSDP1 makes of a model."""
    taken: set[int] = set()
    units = []
    refused: dict[str, None] = {}  # once for all units of a kind
    # Inner modules are wrapped before those that contain them.
    for module in reversed(_unit_modules(model, engine.wrapping, findings)):
        params = {id(p): p for p in module.parameters() if id(p) not in taken}
        taken |= params.keys()
        if params:
            refused |= dict.fromkeys(_refused(module, list(params.values()), engine))
            units.append(_unit(module, params, engine))
    findings.not_supported.extend(refused)
    return units[::-1]


def _refused(module: nn.Module, params: list[nn.Parameter], engine: Engine) -> list[str]:
    """Why FSDP1 will not make a unit of these parameters."""
    kind, reasons = type(module).__name__, []
    dtypes = sorted({str(param.dtype).removeprefix("torch.") for param in params})
    if len(dtypes) > 1:
        reasons.append(f"FSDP1 cannot flatten parameters in {' and '.join(dtypes)} together: in {kind}")
    if engine.flat_params and len({param.requires_grad for param in params}) > 1:
        reasons.append(
            f"FSDP1 with use_orig_params=false cannot hold frozen and trained parameters in one unit: in {kind}"
        )
    return reasons


def _unit(module: nn.Module, params: dict[int, nn.Parameter], engine: Engine) -> Unit:
    dtype = _PARAM_DTYPES.get(engine.mixed_precision, next(iter(params.values())).dtype)
    aligned = 1 if engine.flat_params else _ALIGNMENT // dtype.itemsize
    begins, end = {}, 0
    # In this order, and shared ones where they come first.
    for owner in module.modules():
        for param in owner._parameters.values():
            if param is not None and id(param) in params and id(param) not in begins:
                begins[id(param)] = -(-end // aligned) * aligned
                end = begins[id(param)] + param.numel()
    return Unit(type(module).__name__, begins, -(-end // engine.shards))


def _unit_modules(model: nn.Module, wrapping: Wrapping, findings: Findings) -> list[nn.Module]:
    """Return the modules that are units, the model first, and modules before those that they contain."""
    chosen = {id(module) for module in _wrapped(model, wrapping, findings)}
    return [module for module in model.modules() if module is model or id(module) in chosen]


def _wrapped(model: nn.Module, wrapping: Wrapping, findings: Findings) -> list[nn.Module]:
    """Modules inside the model that torch's policies wrap."""
    policy = _policy(model, wrapping, findings)
    if policy is None:
        return []
    found: list[nn.Module] = []

    def visit(module: nn.Module, *, root: bool) -> int:
        """Return the elements of the module that are in units. As torch's own recursion over policies."""
        numel = sum(param.numel() for param in module.parameters())
        if not policy(module=module, recurse=True, nonwrapped_numel=numel):
            return 0
        inside = sum(visit(child, root=False) for child in module.children())
        if not root and policy(module=module, recurse=False, nonwrapped_numel=numel - inside):
            found.append(module)
            return numel
        return inside

    visit(model, root=True)
    return found


def _policy(model: nn.Module, wrapping: Wrapping, findings: Findings) -> Callable[..., bool] | None:
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    adapted = hasattr(model, "peft_config")
    if wrapping.policy == "SIZE_BASED_WRAP" and not adapted:

        def by_size(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
            return bool(
                size_based_auto_wrap_policy(module, recurse, nonwrapped_numel, min_num_params=wrapping.min_num_params)
            )

        return by_size
    if wrapping.policy == "NO_WRAP" and not adapted:
        return None
    names = layer_classes(model, wrapping, findings)

    def by_class(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        if recurse or type(module).__name__ in names:
            return True
        # For a model with adapters the Trainer takes PEFT's policy, in which each trained layer is a unit of its own.
        weight = getattr(module, "weight", None)
        return adapted and weight is not None and not any(True for _ in module.children()) and weight.requires_grad

    return by_class


def layer_classes(model: nn.Module, wrapping: Wrapping, findings: Findings) -> set[str]:
    """Return the class names of the layers that FSDP wraps, all of which have to be in the model."""
    there = {type(module).__name__ for module in model.modules()}
    if wrapping.classes is None:
        return there & set(getattr(model, "_no_split_modules", None) or ())
    missing = [name for name in wrapping.classes if name not in there]
    if missing:
        findings.not_supported.append(
            f"fsdp_transformer_layer_cls_to_wrap: the model has no layer of class {', '.join(missing)}"
        )
    return there & set(wrapping.classes)
