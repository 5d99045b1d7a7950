"""SGGAdamW and SGGAdam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from gradscale.optim.adam_rule import AdamRule
from gradscale.optim.scaled import ScaledOptimizer
from gradscale.optim.sgg_options import OF_EVERY_STEP, SGGOptions, sgg_options
from gradscale.optim.sgg_scaler import SGGScaler
from gradscale.option_tables import SGG_ADAM
from gradscale.presets import of_preset

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SGGAdamW(ScaledOptimizer):
    """AdamW whose learning rate is scaled per cluster of each layer's momentum (SGG, arXiv 2506.01049, Algorithm 1).

    Every `recluster_interval` steps the momentum of each layer (a parameter of two or more dimensions) is grouped into
    `n_clusters` clusters, and each cluster's scale moves towards the ratio of the model's typical deviation to its own:

        D[l, c] = median over i in c of |m_i - mean(m_l)|
        S[l, c] <- scale_decay S[l, c] + (1 - scale_decay) clamp(D / D[l, c], scale_bounds)
        theta_i <- theta_i - lr weight_decay theta_i - lr S[l, c(i)] AdamW direction_i

    Before the first grouping, with `n_clusters=1`, and for vectors and scalars it is AdamW, by default with Nesterov's
    momentum; with `nesterov=False` (which `preset="paper"` has) it is that of torch. 16-bit parameters are updated in
    float32 and rounded once.

    Args:
        params: tensors, (name, tensor) pairs, or param groups of them. A group may set any option of its own, and
            `scaled=False` to leave its layers unscaled.
        lr: learning rate, a number or a tensor of one element.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay; not scaled.
        amsgrad: divide by the largest second moment seen so far.
        nesterov: Nesterov's momentum: beta1 m + (1 - beta1) g in the place of m, corrected by 1 - beta1^(t + 1) (NAdam,
            Dozat, 2016, without its schedule of beta1). What is grouped stays m. None is what the preset says: True,
            of the paper's False.
        foreach, capturable, differentiable, fused: torch's switches; `kernel` is in their place, so None and False are
            all they can be.
        maximize: ascend instead of descend.
        n_clusters: K. 1 leaves AdamW as it is.
        recluster_interval: T, a number of steps, or a fraction of the run (strictly between 0 and 1), which needs
            `total_steps`.
        scale_decay: beta3, in [0, 1). The paper uses 0.99.
        scale_bounds: lowest and highest ratio that enters a scale.
        momentum_sign: "signed" groups the momentum, "absolute" its absolute value.
        labels: "frozen" keeps each element's cluster until the next grouping (1 byte per parameter); "live" reads it
            anew at each step from the momentum and the last boundaries (no memory).
        global_mda: D as the median over all "clusters" or over all "parameters"; or that of the "layer", with which
            the mean of its ratios is 1, so that it keeps its rate as a whole (`gradscale.scalers.sgg.mda_of_layer`).
        grouping: "kmeans" makes K clusters per layer; "layer" takes each whole layer as one (a scale per layer);
            "static" takes blocks of `static_block` rows (a scale per block); "minibatch_kmeans", "gmm" and "dbscan" are
            scikit-learn's (slow); "none" leaves AdamW as it is.
        scope: which layers are scaled: "all" of two or more dimensions, or the "hidden" ones between input embedding
            and output head of `module`, which it needs; "auto", the default in a Trainer, is "hidden" with a module
            and "all" without: see `gradscale.optim.model_ends`.
        static_block: rows in a block, such as those of a head; None is 1.
        statistic: what of a cluster is compared with the model's: "mda" (the paper's choice), "mean", "variance",
            "variance_sign", "l2" or "mad", see `gradscale.scalers.statistics`; "none" leaves AdamW as it is.
        labels_device: where frozen labels and scales are kept: both with the parameter ("device"), both in host memory
            ("cpu"), or labels in host memory and scales with the parameter ("hybrid").
        pool: "lora" groups the LoRA matrices of one kind and parent module together (see `gradscale.optim.pools`).
        min_layer_size: layers, or pools, of fewer elements are one cluster.
        total_steps: optimizer steps of the run, or "deferred" when `set_total_steps` will say so before the first step.
        preset: values of all options of SGG that are not given: "default", or "paper" (see `gradscale.presets`).
        moments_dtype: dtype of both moments: "float32", "bfloat16", or by "auto" the parameter's own (of float16
            parameters float32, because squares of usual gradients are below what float16 can hold).
        kahan_sum: keep what rounding takes from 16-bit parameters, in their dtype, and give it back in later steps
            (Kahan, 1965): training in pure bfloat16 as if with float32 parameters, at 2 bytes per parameter.
        kernel: how the step runs: "compiled" is one loop over all elements, generated by torch.compile, and raises
            where no compiler works; "eager" needs none; "auto" compiles for models from 2 million parameters on, and
            warns and goes on eagerly where that fails. All give the same within rounding.
        module: the model; gives layers their names in reports and is needed by `target_modules`.
        target_modules: scale only the layers of these modules: a list of substrings of module names, a regular
            expression that matches a whole name, or "all-linear".
        embedding_lr_factor: what the learning rate of the input embedding of `module` is multiplied by (and with it its
            weight decay); a head that is tied to it goes along. "auto", the default in a Trainer, is 16, and 1 where
            the head is tied or nothing is known of an embedding: see `gradscale.optim.embedding_rate`. A param group
            may have a number of its own.

    Raises:
        OptionError: (a ValueError) an option is out of range; the message says what is allowed.
        KernelUnavailableError: (a RuntimeError, at the first step) `kernel="compiled"`, and no compiler works.
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
        nesterov: bool | None = None,
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
            "amsgrad": amsgrad,
            "nesterov": of_preset("nesterov", sgg, SGG_ADAM) if nesterov is None else nesterov,
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
