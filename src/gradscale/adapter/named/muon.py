"""SGG on Muon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradscale.adapter.named.base import NamedAdapter
from gradscale.adapter.named.groups import split_groups
from gradscale.adapter.named.hidden import hidden_matrices
from gradscale.options import OptionError


class SGGMuon(NamedAdapter):
    """SGG on Muon (Jordan et al., 2024) of pytorch-optimizer, which has an AdamW for what is no hidden matrix.

    Hidden matrices are the weights of linear layers and convolutions but for the output head; see `hidden_matrices`.
    They are found in `module`, unless param groups say `use_muon` themselves. torch's own Muon takes nothing but
    matrices, so that there a second optimizer would have to step the rest.

    Both keep a running mean of the gradient, which is grouped.

    Args and errors: see `NamedAdapter`. OptionError: neither a model nor `use_muon` says what a hidden matrix is.
    """

    name = "sgg_muon"
    takes_shards = True

    def _prepared(
        self,
        groups: list[dict[str, Any]],
        module: nn.Module | None,
        target_modules: str | list[str] | None,
        values: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        groups = super()._prepared(groups, module, target_modules, values)
        told = ["use_muon" in group for group in groups]
        if all(told):
            return groups
        if module is None or any(told):
            raise OptionError(
                "sgg_muon needs module=, the model in which it finds the hidden matrices, or use_muon=True or False in "
                f"every param group, but {'only some have it' if any(told) else 'there is none of it'}"
            )
        return split_groups(
            groups, {id(param) for param in hidden_matrices(module)}, {"use_muon": True}, {"use_muon": False}
        )

    def _make_base(self, groups: list[dict[str, Any]], rates: dict[str, Any], values: dict[str, Any]) -> Optimizer:
        from pytorch_optimizer import Muon

        rate = values.pop("adamw_lr")
        of_adamw = {
            "adamw_lr": float(rates["lr"]) if rate is None else rate,
            "adamw_betas": values.pop("betas"),
            "adamw_eps": values.pop("eps"),
            "adamw_wd": rates.get("weight_decay", 0.0),
        }
        base: Optimizer = Muon(groups, **rates, **values, **of_adamw)
        return base
