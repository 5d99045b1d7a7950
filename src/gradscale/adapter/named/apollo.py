"""SGG on APOLLO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradscale.adapter.named.base import NamedAdapter
from gradscale.adapter.named.groups import split_groups
from gradscale.optim.param_groups import tensor_of
from gradscale.optim.target_modules import select_parameters
from gradscale.options import OptionError

_OF_GROUPS = ("rank", "proj", "scale_type", "update_proj_gap", "scale", "proj_type")


class SGGAPOLLOAdamW(NamedAdapter):
    """SGG on APOLLO (Zhu et al., arXiv 2412.05270) of apollo-torch: AdamW's factors from moments of low rank.

    The weights of `target_modules` are projected, and scaled; all others are stepped by AdamW, with moments of full
    size, and not scaled. There is no momentum of a projected layer. So the gradient of the step of the grouping is
    grouped, without memory, or a running mean: see `kept_momentum`.

    Args and errors: see `NamedAdapter`. `target_modules=None` is "all-linear", without layers that share their weight
    with an embedding; param groups that say `rank` themselves are taken as they are. OptionError: neither they nor a
    model say what is to be projected.
    """

    name = "sgg_apollo_adamw"

    def _prepared(
        self,
        groups: list[dict[str, Any]],
        module: nn.Module | None,
        target_modules: str | list[str] | None,
        values: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        if any("rank" in group for group in groups):
            of_rank = {key: values[key] for key in _OF_GROUPS}
            groups = [{**of_rank, **group} if "rank" in group else group for group in groups]
            return super()._prepared(groups, module, target_modules, values)
        if module is None:
            raise OptionError(
                "sgg_apollo_adamw needs module=, the model in which it finds the layers to project, or rank= in the "
                "param groups of these"
            )
        tied = {id(owner.weight) for owner in module.modules() if isinstance(owner, nn.Embedding)}
        chosen = {id(param) for param in select_parameters(module, target_modules or "all-linear")} - tied
        split = split_groups(groups, chosen, {key: values[key] for key in _OF_GROUPS}, {"scaled": False})
        if not any("rank" in group for group in split):
            raise ValueError(
                f"target_modules={target_modules or 'all-linear'!r} matches only parameters that are not being "
                "optimized (frozen, or in no param group)"
            )
        return split

    def _make_base(self, groups: list[dict[str, Any]], rates: dict[str, Any], values: dict[str, Any]) -> Optimizer:
        from gradscale.adapter.named.apollo_base import SavableAPOLLOAdamW

        for group in groups:
            shapes = [list(tensor_of(item).shape) for item in group["params"]] if "rank" in group else []
            wrong = [shape for shape in shapes if len(shape) != 2]
            if wrong:
                raise OptionError(
                    f"APOLLO projects matrices, but in a param group with rank there is one of {wrong[0]}"
                )
        return SavableAPOLLOAdamW(groups, **rates, **{key: values[key] for key in values if key not in _OF_GROUPS})
