"""What the controller decides about one optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass

NOTHING = ""
WARMUP = "warmup"
CLIPPED = "clipped"
RESEEDED = "reseeded"
OVERFLOW = "overflow"
FORGIVEN = "overflow forgiven"
BAD_LOSS = "non-finite loss"
BAD_NORM = "non-finite norm"
OUTLIER = "outlier"


@dataclass(frozen=True)
class Decision:
    """What to do with the gradients of one step, and the loss scale of the next.

    Attributes:
        threshold: clip norm for this step's gradients, in units of their norm; `math.inf`: leave them as they are.
        loss_scale: for the next step; None where the controller does not manage one.
        skip: leave the optimizer step out. No optimizer state may change.
        reason: short and stable, for logs and counters: "" (nothing happened), "warmup" (the threshold is still the
            fixed one), "clipped", "reseeded" (the norm has moved for good, its statistics begin anew), "overflow"
            (skipped, and the scale was lowered), "overflow forgiven" (skipped, the scale kept), "non-finite loss",
            "non-finite norm" (skipped, no loss scale is managed), "outlier" (skipped: norm and loss are extreme).
        group_thresholds: a clip norm per param group, where the norms of the groups were given.
    """

    threshold: float
    loss_scale: float | None
    skip: bool
    reason: str
    group_thresholds: tuple[float, ...] | None = None

    def coefficient(self, norm: float) -> float:
        """Return what to multiply gradients of this norm by, at most 1.

        Of a norm that is not finite nothing can be kept: 0.
        """
        return clip_coefficient(self.threshold, norm)


def clip_coefficient(threshold: float, norm: float) -> float:
    """Return min(1, threshold / norm); 0 for NaN and infinity.

    Without the 1e-6 that `torch.nn.utils.clip_grad_norm_` adds to the norm: it would shrink small gradients that are
    below their threshold.
    """
    if not math.isfinite(norm):
        return 0.0
    return 1.0 if norm <= threshold else threshold / norm
