"""SGG on CAME."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from gradscale.adapter.named.base import NamedAdapter
from gradscale.adapter.named.saved_dtypes import keep_saved_dtypes
from gradscale.optim.members import Member
from gradscale.options import OptionError


class SGGCAME(NamedAdapter):
    """SGG on CAME (Luo et al., arXiv 2307.02047, Algorithm 2) of came-pytorch.

    Its momentum, the running mean of normalized updates, is grouped.

    Args and errors: see `NamedAdapter`. The library wants a learning rate above 0.
    """

    name = "sgg_came"

    def _make_base(self, groups: list[dict[str, Any]], rates: dict[str, Any], values: dict[str, Any]) -> Optimizer:
        from came_pytorch import CAME

        if not float(rates["lr"]) > 0:
            raise OptionError(f"lr={rates['lr']!r} is not allowed: CAME expects a finite number above 0")
        base: Optimizer = CAME(groups, **rates, **values)
        return base

    def momentum_key(self, member: Member) -> str:
        """The running mean of normalized updates, m in the paper."""
        return "exp_avg"

    def _loaded_into_base(self, state_dict: Mapping[str, Any]) -> None:
        keep_saved_dtypes(self.base_optimizer, state_dict)
