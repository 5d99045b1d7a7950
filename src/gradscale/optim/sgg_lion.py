"""SGGLion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from gradscale.optim.lion_rule import LionRule
from gradscale.optim.scaled import ScaledOptimizer
from gradscale.optim.sgg_options import OF_EVERY_STEP, SGGOptions, sgg_options
from gradscale.optim.sgg_scaler import SGGScaler

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SGGLion(ScaledOptimizer):
    """Lion whose learning rate is scaled per cluster of each layer's momentum (SGG, arXiv 2506.01049, Algorithm 1).

    Clusters and scales are those of `SGGAdamW`, on Lion (Chen et al., arXiv 2302.06675, Algorithm 2):

        d_i = sign(beta1 m_i + (1 - beta1) g_i)
        theta_i <- theta_i - lr weight_decay theta_i - lr S[l, c(i)] d_i
        m <- beta2 m + (1 - beta2) g

    What is grouped is the momentum with today's gradient in it, as with the other bases. Before the first grouping,
    with `n_clusters=1`, and for vectors and scalars it is Lion. Usual learning rates are a third to a tenth of AdamW's.
    Inside a Trainer, `betas` come from `optim_args` alone: `adam_beta1` and `adam_beta2` are Adam's.

    Args:
        params: see `SGGAdamW`.
        lr: learning rate, a number or a tensor of one element.
        betas: what the direction, and what the momentum keeps of the past, each in [0, 1).
        weight_decay: decoupled weight decay; not scaled.
        maximize: ascend instead of descend.
        moments_dtype: dtype of the momentum: "float32", "bfloat16", or by "auto" the parameter's own (of float16
            parameters float32).
        foreach, capturable, differentiable, fused, kahan_sum, kernel, module, target_modules,
            embedding_lr_factor: see `SGGAdamW`.
        **sgg: `n_clusters`, `recluster_interval`, ...; see `SGGAdamW`.

    Raises:
        OptionError: (a ValueError) an option is out of range; the message says what is allowed.
        KernelUnavailableError: (a RuntimeError, at the first step) `kernel="compiled"`, and no compiler works.
        ValueError: `target_modules` matches nothing, or a parameter is complex.
    """

    base = LionRule()
    scaler = SGGScaler()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        moments_dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        kahan_sum: bool = False,
        kernel: Literal["auto", "compiled", "eager"] = "auto",
        module: nn.Module | None = None,
        target_modules: str | list[str] | None = None,
        embedding_lr_factor: float | Literal["auto"] = 1.0,
        **sgg: Unpack[SGGOptions],
    ) -> None:
        of_base = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "moments_dtype": moments_dtype,
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
