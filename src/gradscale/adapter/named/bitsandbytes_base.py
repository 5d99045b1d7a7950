"""AdamW of bitsandbytes, as it can be stepped one tensor at a time. Imports bitsandbytes."""

from __future__ import annotations

from typing import Any

from bitsandbytes.optim import AdamW


class GroupwiseAdamW(AdamW):
    """AdamW of bitsandbytes whose param groups may say `optim_bits`, 8 or 32.

    The library's manager of exceptions knows tensors by their place in the param groups, which is another one where
    tensors are stepped one at a time: an exception for the first one would be made for all.
    """

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Return the options of one tensor."""
        # Places from the end are the same tensors, and none that the manager knows.
        config: dict[str, Any] = super().get_config(
            gindex - len(self.param_groups), pindex - len(group["params"]), group
        )
        return {**config, "optim_bits": group["optim_bits"]} if "optim_bits" in group else config
