"""SGGSGD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from gradscale.optim.scaled import ScaledOptimizer
from gradscale.optim.sgd_rules import SGDRule
from gradscale.optim.sgg_options import OF_EVERY_STEP, SGGOptions, sgg_options
from gradscale.optim.sgg_scaler import SGGScaler

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SGGSGD(ScaledOptimizer):
    """SGD whose learning rate is scaled per cluster of each layer's momentum (SGG, arXiv 2506.01049, Algorithm 1).

    Clusters and scales are those of `SGGAdamW`. With g the gradient, weight decay included:

        b <- momentum b + (1 - dampening) g,  b <- g at the first step
        theta_i <- theta_i - lr S[l, c(i)] d_i,  d = b, or with Nesterov's momentum g + momentum b

    Without momentum there is no b, and g itself is grouped, at no memory of its own: frozen labels are those of the
    gradient of the step that groups, live ones are read from today's gradient. Before the first grouping, with
    `n_clusters=1`, and for vectors and scalars it is `torch.optim.SGD`.

    Args:
        params: see `SGGAdamW`.
        lr: learning rate, a number or a tensor of one element.
        momentum: what is kept of the momentum buffer, in [0, 1).
        dampening: share of the gradient that does not enter the buffer.
        weight_decay: enters the gradient, so that it is scaled with it.
        nesterov: Nesterov's momentum, in torch's form.
        maximize: ascend instead of descend.
        foreach, capturable, differentiable, fused, kahan_sum, kernel, module, target_modules,
            embedding_lr_factor: see `SGGAdamW`.
        **sgg: `n_clusters`, `recluster_interval`, ...; see `SGGAdamW`.

    Raises:
        OptionError: (a ValueError) an option is out of range, or `nesterov` without momentum or with dampening.
        KernelUnavailableError: (a RuntimeError, at the first step) `kernel="compiled"`, and no compiler works.
        ValueError: `target_modules` matches nothing, or a parameter is complex.
    """

    base = SGDRule()
    scaler = SGGScaler()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        kahan_sum: bool = False,
        kernel: Literal["auto", "compiled", "eager"] = "auto",
        module: nn.Module | None = None,
        target_modules: str | list[str] | None = None,
        embedding_lr_factor: float | Literal["auto"] = 1.0,
        **sgg: Unpack[SGGOptions],
    ) -> None:
        of_base = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "kahan_sum": kahan_sum,
        }
        defaults = {**of_base, **sgg_options(sgg, owner=type(self).__name__, others=(*of_base, *OF_EVERY_STEP))}
        switches = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(
            params,
            defaults,
            module=module,
            target_modules=target_modules,
            embedding_lr_factor=embedding_lr_factor,
            switches=switches,
            kernel=kernel,
        )
