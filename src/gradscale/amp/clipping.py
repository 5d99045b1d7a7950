"""One step's gradients and loss given to a controller, and what it decides done to the gradients.

At most one small reduction over ranks beside the shards' own, one transfer to the host, one pass that reads the
gradients, and one that scales them where they are clipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradscale.amp.gradient_norm import GradientNorm, all_reduce
from gradscale.control import ALSDGC, Decision


class Clipper:
    """Clips gradients to the threshold of a controller.

    Args:
        controller: decides.
        norm_type: p of the norm; that of the controller.
        group: ranks that have to decide alike; None for all, False for this rank alone.
        per_group: a threshold for each list of parameters, instead of one for all.

    Attributes:
        norm: of all gradients, before clipping; NaN before the first call.
        loss: mean over the ranks; None where none was given.
    """

    def __init__(self, controller: ALSDGC, norm_type: float, *, group: Any = None, per_group: bool = False) -> None:
        self.controller = controller
        self.norm = math.nan
        self.loss: float | None = None
        self._norm_type = norm_type
        self._group = group
        self._per_group = per_group
        self._gradients: GradientNorm | None = None

    def clip_(
        self,
        buckets: Sequence[Sequence[Tensor]],
        *,
        loss: Tensor | None = None,
        found_inf: Tensor | None = None,
        lr: float | None = None,
    ) -> Decision:
        """Observe this step and scale the gradients if they are above the threshold.

        Args:
            buckets: lists of parameters; only `per_group` tells them apart.
            loss: of this rank, unscaled, of no dimensions.
            found_inf: above 0 where a scaler found a gradient of this rank that is not finite.
            lr: learning rate, for the controller.
        """
        if not self._per_group:
            buckets = [[param for bucket in buckets for param in bucket]]
        if self._gradients is None or not self._gradients.covers(buckets):
            self._gradients = GradientNorm(buckets, self._norm_type)
        norms = self._gradients.measure()
        device = norms.device
        nothing = torch.full((), math.nan, dtype=norms.dtype, device=device)
        numbers = torch.stack(
            [
                nothing if loss is None else loss.detach().to(device, norms.dtype),
                torch.zeros_like(nothing) if found_inf is None else found_inf.to(device, norms.dtype),
                self._gradients.total(norms),
                *norms,
            ]
        )
        ranks = ranks_of(self._group)
        if ranks > 1:
            # The norms are the same everywhere but perhaps in their last bit, and decisions must be the same exactly.
            all_reduce(numbers, "sum", self._group)
            numbers = numbers / ranks
        on_host: list[float] = numbers.tolist()
        self.loss = None if loss is None else on_host[0]
        self.norm = on_host[2]
        decision = self.controller.observe(
            norm=self.norm,
            loss=self.loss,
            found_inf=not on_host[1] == 0,
            lr=lr,
            group_norms=on_host[3:] if self._per_group else None,
        )
        if not decision.skip:
            self._gradients.scale_(self._coefficients(decision, on_host[3:]))
        return decision

    def clipped_norm(self, decision: Decision) -> float:
        """Return the norm after clipping to one threshold, 0 of a step that is skipped."""
        return 0.0 if decision.skip else self.norm * decision.coefficient(self.norm)

    def _coefficients(self, decision: Decision, norms: list[float]) -> list[float]:
        if not self._per_group or decision.group_thresholds is None:
            return [decision.coefficient(self.norm)] * len(norms)
        pairs = zip(decision.group_thresholds, norms, strict=True)
        return [min(1.0, threshold / (norm + 1e-6)) for threshold, norm in pairs]


def ranks_of(group: Any) -> int:
    """Return how many ranks decide together.

    Args:
        group: a process group, None for all ranks, False for this one alone.
    """
    if group is False or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)
