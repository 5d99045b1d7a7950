"""Which layers are grouped as if they were one: matrices of LoRA adapters are small, and come in families."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.optim.rule import Group, Layer
from gradscale.optim.target_modules import without_wrappers
from gradscale.option_tables import SGG
from gradscale.options import OptionError

# <parent>.<adapted layer>.<lora_A, lora_B, lora_embedding_A, lora_E, ...>.<adapter>, and .weight where the matrix is in
# a module of its own.
_ADAPTER = re.compile(r"(?:(?P<parent>.+)\.)?(?P<layer>[^.]+)\.(?P<kind>lora_\w+)\.(?P<adapter>[^.]+?)(?:\.weight)?")
# What FSDP1 calls the vector into which it lays parameters, whose names it knows.
_FLATTENED = "_flat_param"


@dataclass(frozen=True)
class Pool:
    """Layers that are grouped together: clusters, boundaries and scales are theirs in common.

    Attributes:
        name: for reports; of a layer that is alone its own name.
        layers: one or more, with the same options, shared over the same process groups.
    """

    name: str
    layers: tuple[Layer, ...]

    @property
    def numel(self) -> int:
        """Elements of all layers, on all ranks."""
        return sum(layer.numel for layer in self.layers)

    @property
    def group(self) -> Group:
        """Param group of the first layer. Those of the others have the same options of SGG."""
        return self.layers[0].group

    @property
    def due(self) -> bool:
        """Whether their scales move now."""
        return self.layers[0].due

    @property
    def scales(self) -> Tensor:
        """Scales before this grouping, `[K]`: the mean over the layers, weighted by their elements.

        They are the same in all layers, but for those that have been in no pool, or in another one, until now.
        """
        if len(self.layers) == 1:
            scales: Tensor = self.layers[0].state["scales"]
            return scales
        stacked = torch.stack([layer.state["scales"].double().cpu() for layer in self.layers])
        weights = torch.tensor([[layer.numel / self.numel] for layer in self.layers], dtype=torch.float64)
        return (weights * stacked).sum(dim=0)


def pools_of(layers: Sequence[Layer]) -> list[Pool]:
    """Sort layers into pools, in the order of their first layers. Layers that are in none are pools of their own.

    With `pool="lora"` the A matrices of an adapter are a pool in each parent module (q, k, v and o of an attention
    block; gate, up and down of an MLP), its B matrices another, and so on for whatever else LoRA adds to a layer.
    Layers that differ in an option of SGG, or that are shared over different process groups, are in different pools.
    """
    pools: dict[Hashable, list[Layer]] = {}
    names: dict[Hashable, str] = {}
    for place, layer in enumerate(layers):
        found = _matched(layer.name) if layer.group["pool"] == "lora" else None
        key: Hashable = place
        if found is not None:
            family = tuple(found[part] for part in ("parent", "kind", "adapter"))
            options = tuple(layer.group[name] for name in (*SGG, "total_steps"))
            key = family, options, tuple(id(group) for group in layer.process_groups)
            names[key] = ".".join([*filter(None, [family[0]]), "*", found["kind"], found["adapter"]])
        pools.setdefault(key, []).append(layer)
    return [Pool(names[key] if len(members) > 1 else members[0].name, tuple(members)) for key, members in pools.items()]


def check_pool_names(group: Mapping[str, object], members: Iterable[tuple[str | None, Tensor]]) -> None:
    """Check that layers of a param group have the names by which they are pooled, if they are.

    Args:
        group: the param group's options.
        members: names and parameters; None where there is no name.

    Raises:
        OptionError: one has none.
    """
    if group.get("pool", "none") == "none" or not group.get("scaled", True):
        return
    for place, (name, param) in enumerate(members):
        # DeepSpeed's zero.Init leaves an empty placeholder and keeps the real shape here.
        shape = getattr(param, "ds_shape", param.shape)
        if name is None and len(shape) >= 2 and math.prod(shape) > 0:
            raise OptionError(
                f"pool={group['pool']!r} finds LoRA's matrices by their names, and parameter {place} of a group has "
                f"none: give module= (the model), or (name, parameter) pairs such as model.named_parameters()"
            )


def check_pools_anything(groups: Sequence[Mapping[str, object]], names: Iterable[str]) -> None:
    """Check that there is something to pool.

    Args:
        groups: the options of all param groups.
        names: names of all their parameters.

    Raises:
        OptionError: pools are asked for, and no parameter is one of LoRA's.
    """
    if not any(group.get("pool", "none") == "lora" for group in groups):
        return
    names = list(names)
    if names and not any(_FLATTENED in name or _matched(name) for name in names):
        raise OptionError(
            f"pool='lora' has nothing to pool: none of the {len(names)} parameters to train is called like one of "
            f"PEFT's, for example 'model.layers.0.self_attn.q_proj.lora_A.default.weight' (the first is {names[0]!r}). "
            "Leave it at 'none'"
        )


def _matched(name: str) -> re.Match[str] | None:
    # PEFT nests layers of its own where an adapter is around a single parameter.
    plain = ".".join(part for part in without_wrappers(name).split(".") if part != "base_layer")
    return _ADAPTER.fullmatch(plain)
