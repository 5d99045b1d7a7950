"""SGG on AdamW with moments in 8 bits, of bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradscale.adapter.named.base import NamedAdapter
from gradscale.adapter.named.groups import split_groups


class SGGAdamW8bit(NamedAdapter):
    """SGG on AdamW of bitsandbytes, which keeps both moments in 8 bits, by blocks (Dettmers et al., arXiv 2110.02861).

    The momentum is made dense for one layer at a time when it is grouped. Small tensors keep their moments in float32,
    and so do embeddings of `module`, as under `--optim adamw_8bit`.

    Args and errors: see `NamedAdapter`.
    """

    name = "sgg_adamw_8bit"
    paged = False

    def _prepared(
        self,
        groups: list[dict[str, Any]],
        module: nn.Module | None,
        target_modules: str | list[str] | None,
        values: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        groups = super()._prepared(groups, module, target_modules, values)
        if module is None:
            return groups
        embeddings = {id(owner.weight) for owner in module.modules() if isinstance(owner, nn.Embedding)}
        return split_groups(groups, embeddings, {"optim_bits": 32}, {})

    def _make_base(self, groups: list[dict[str, Any]], rates: dict[str, Any], values: dict[str, Any]) -> Optimizer:
        from gradscale.adapter.named.bitsandbytes_base import GroupwiseAdamW

        return GroupwiseAdamW(groups, **rates, **values, optim_bits=8, is_paged=self.paged)


class SGGPagedAdamW8bit(SGGAdamW8bit):
    """`SGGAdamW8bit` with moments in memory that CUDA moves to the host where the GPU is full.

    Args and errors: see `NamedAdapter`.
    """

    name = "sgg_paged_adamw_8bit"
    paged = True
