"""SGGLamb."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from gradscale.optim.lamb_rule import LAMBRule
from gradscale.optim.scaled import ScaledOptimizer
from gradscale.optim.sgg_options import OF_EVERY_STEP, SGGOptions, sgg_options
from gradscale.optim.sgg_scaler import SGGScaler

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SGGLamb(ScaledOptimizer):
    """LAMB whose learning rate is scaled per cluster of each layer's momentum (SGG, arXiv 2506.01049, Algorithm 1).

    Clusters and scales are those of `SGGAdamW`, on LAMB (You et al., arXiv 1904.00962, Algorithm 2):

        r = m_hat / (sqrt(v_hat) + eps)
        ratio = ||w|| / ||r + weight_decay w||,  1 where either norm is 0
        w_i <- w_i - lr ratio (S[l, c(i)] r_i + weight_decay w_i)

    The trust ratio is the base's own, computed before scaling. Norms are those of whole layers, however they are
    sharded. Vectors and scalars have a ratio of 1 and step like AdamW's. Layers that are not scaled have their ratios
    all the same: before the first grouping and with `n_clusters=1` it is LAMB. Unlike some implementations, it has a
    ratio also where `weight_decay` is 0, does not bound ||w||, and leaves clipping gradients to others.

    Args:
        params: see `SGGAdamW`.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment. Inside a Trainer it comes from `optim_args` alone: `adam_epsilon`
            is Adam's.
        weight_decay: decoupled weight decay; not scaled by S, but by the ratio.
        trust_clip: no ratio above 1.
        adapt_vectors: trust ratios of vectors and scalars too.
        maximize: ascend instead of descend.
        moments_dtype, foreach, capturable, differentiable, fused, kahan_sum, kernel, module, target_modules,
            embedding_lr_factor: see
            `SGGAdamW`.
        **sgg: `n_clusters`, `recluster_interval`, ...; see `SGGAdamW`.

    Raises:
        OptionError: (a ValueError) an option is out of range; the message says what is allowed.
        KernelUnavailableError: (a RuntimeError, at the first step) `kernel="compiled"`, and no compiler works.
        ValueError: `target_modules` matches nothing, or a parameter is complex.
    """

    base = LAMBRule()
    scaler = SGGScaler()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        trust_clip: bool = False,
        adapt_vectors: bool = False,
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
            "eps": eps,
            "weight_decay": weight_decay,
            "trust_clip": trust_clip,
            "adapt_vectors": adapt_vectors,
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
