"""SGG on Adafactor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from gradscale.adapter.named.base import NamedAdapter
from gradscale.adapter.named.saved_dtypes import keep_saved_dtypes
from gradscale.optim.members import Member


class SGGAdafactor(NamedAdapter):
    """SGG on transformers' Adafactor (Shazeer and Stern, arXiv 1804.04235), as `--optim adafactor` sets it.

    The learning rate is the given one (`scale_parameter=False`, `relative_step=False`). With `beta1` its running mean
    of updates is grouped. It has the learning rate in it, of which scales, being ratios, know nothing where all groups
    have the same. Without, see `kept_momentum`.

    Args and errors: see `NamedAdapter`.
    """

    name = "sgg_adafactor"

    def _make_base(self, groups: list[dict[str, Any]], rates: dict[str, Any], values: dict[str, Any]) -> Optimizer:
        from transformers.optimization import Adafactor

        base: Optimizer = Adafactor(groups, **rates, **values, scale_parameter=False, relative_step=False)
        return base

    def momentum_key(self, member: Member) -> str | None:
        """Its running mean of updates, if it keeps one."""
        return None if self._options.of_member(member).group["beta1"] is None else "exp_avg"

    def _loaded_into_base(self, state_dict: Mapping[str, Any]) -> None:
        keep_saved_dtypes(self.base_optimizer, state_dict)
