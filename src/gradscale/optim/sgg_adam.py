"""SGGAdamW and SGGAdam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from gradscale.optim.adam_rule import AdamRule
from gradscale.optim.scaled import ScaledOptimizer
from gradscale.optim.sgg_scaler import SGGScaler


class SGGAdamW(ScaledOptimizer):
    """AdamW whose learning rate is scaled per cluster of each layer's momentum (SGG, arXiv 2506.01049, Algorithm 1).

    Every `recluster_interval` steps the momentum of each layer (a parameter of two or more dimensions) is grouped into
    `n_clusters` clusters, and each cluster's scale moves towards the ratio of the model's typical deviation to its own:

        D[l, c] = median over i in c of |m_i - mean(m_l)|
        S[l, c] <- scale_decay S[l, c] + (1 - scale_decay) clamp(D / D[l, c], scale_bounds)
        theta_i <- theta_i - lr weight_decay theta_i - lr S[l, c(i)] AdamW direction_i

    Before the first grouping, with `n_clusters=1`, and for vectors and scalars it is AdamW. 16-bit parameters are
    updated in float32; moments are kept in the parameter's dtype (for float16 in float32).

    Args:
        params: tensors, (name, tensor) pairs, or param groups of them. A group may set any option of its own, and
            `scaled=False` to leave its layers unscaled.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay; not scaled.
        amsgrad: divide by the largest second moment seen so far.
        foreach, capturable, differentiable, fused: torch's switches; there is one implementation, so None and False
            are all they can be.
        maximize: ascend instead of descend.
        n_clusters: K. 1 leaves AdamW as it is.
        recluster_interval: T, a number of steps, or a fraction of the run (strictly between 0 and 1), which needs
            `total_steps`.
        scale_decay: beta3, in [0, 1). The paper uses 0.99.
        scale_bounds: lowest and highest ratio that enters a scale.
        momentum_sign: "signed" groups the momentum, "absolute" its absolute value.
        labels: "frozen" keeps each element's cluster until the next grouping (1 byte per parameter); "live" reads it
            anew at each step from the momentum and the last boundaries (no memory).
        global_mda: D as the median over all "clusters" or over all "parameters".
        grouping: "kmeans" makes K clusters per layer; "layer" takes each whole layer as one (a scale per layer).
        total_steps: optimizer steps of the run, or "deferred" when `set_total_steps` will say so before the first step.
        module: the model; gives layers their names in reports and is needed by `target_modules`.
        target_modules: scale only the layers of these modules: a list of substrings of module names, a regular
            expression that matches a whole name, or "all-linear".

    Raises:
        OptionError: (a ValueError) an option is out of range; the message says what is allowed.
        ValueError: `target_modules` matches nothing, or a parameter is complex.
    """

    base = AdamRule(decoupled_weight_decay=True)
    scaler = SGGScaler()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        n_clusters: int = 3,
        recluster_interval: int | float = 500,
        scale_decay: float = 0.9,
        scale_bounds: tuple[float, float] = (0.1, 10.0),
        momentum_sign: Literal["signed", "absolute"] = "signed",
        labels: Literal["frozen", "live"] = "frozen",
        global_mda: Literal["clusters", "parameters"] = "clusters",
        grouping: Literal["kmeans", "layer"] = "kmeans",
        total_steps: int | Literal["deferred"] | None = None,
        module: nn.Module | None = None,
        target_modules: str | list[str] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "n_clusters": n_clusters,
            "recluster_interval": recluster_interval,
            "scale_decay": scale_decay,
            "scale_bounds": scale_bounds,
            "momentum_sign": momentum_sign,
            "labels": labels,
            "global_mda": global_mda,
            "grouping": grouping,
            "total_steps": total_steps,
        }
        switches = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, defaults, module=module, target_modules=target_modules, switches=switches)


class SGGAdam(SGGAdamW):
    """`SGGAdamW` with weight decay added to the gradient, as in `torch.optim.Adam`, so that it is scaled with it.

    Args, errors and source: see `SGGAdamW`. The default `weight_decay` is 0.
    """

    base = AdamRule(decoupled_weight_decay=False)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
