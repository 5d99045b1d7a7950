"""DGSSGD, DGSLARS, DGSAdamW and DGSAdam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor

from gradscale.optim.adam_rule import AdamRule
from gradscale.optim.dgs_scaler import DGSScaler
from gradscale.optim.scaled import ScaledOptimizer
from gradscale.optim.sgd_rules import LARSRule, SGDRule
from gradscale.options import nearest

_SWITCHES = ("foreach", "capturable", "differentiable", "fused")
_OPTIONS: dict[str, Any] = {
    "form": "full",
    "beta": 1.0,
    "sigma": 1.0,
    "gamma": None,
    "importance_decay": 0.0,
    "reset": "soft",
    "reset_decay": 0.1,
    "reset_every": None,
    "reset_spike": None,
    "factor_bounds": (0.1, 10.0),
    "maximize": False,
    "total_steps": None,
    "kahan_sum": False,
}
_OTHERS: dict[str, Any] = {
    "kernel": "auto",
    "module": None,
    "target_modules": None,
    "embedding_lr_factor": 1.0,
    **dict.fromkeys(_SWITCHES),
}


class _DGS(ScaledOptimizer):
    """What the four share: their options beside those of the base, as `DGSSGD` lists them."""

    def __init__(self, params: Iterable[Any], of_base: dict[str, Any], **options: Any) -> None:
        known = {**_OPTIONS, **_OTHERS}
        for name in options:
            if name not in known:
                raise TypeError(
                    f"{type(self).__name__}() got an unexpected keyword argument {name!r}"
                    f"{nearest(name, (*known, *of_base))}"
                )
        others = {name: options.get(name, default) for name, default in _OTHERS.items()}
        switches = {name: others.pop(name) for name in _SWITCHES}
        own = {name: options.get(name, default) for name, default in _OPTIONS.items()}
        super().__init__(params, {**of_base, **own}, switches=switches, **others)


class DGSSGD(_DGS):
    """SGD whose learning rate is scaled down by the importance of each gradient (DGS, doi 10.22214/ijraset.2024.62669).

    With I = |g| of an element, M its mean over the layer and G = sigma + sum of gamma I over all parameters:

        theta_i <- theta_i - lr factor_i direction_i

        equation     factor = beta / G                                (section III.A)
        importance   factor = 1 / (I + eps)                           (section III.B)
        full         factor = beta / ((I + eps) G)                    (both; the default)
        normalized   factor = clamp(M / (I + eps M), factor_bounds)   (ordinary learning rates keep their meaning)

    Without momentum, "importance" is a step along the sign of the gradient, and so is "full", divided by G. Every
    parameter is scaled, and counted in G, whatever its shape; those with `scaled=False` are counted and stepped by SGD.

    Args:
        params: tensors, (name, tensor) pairs, or param groups of them. A group may set any option of its own.
        lr: learning rate, a number or a tensor of one element.
        momentum: what is kept of the momentum buffer; the factor multiplies what comes out of it.
        dampening: share of the gradient that does not enter the buffer.
        weight_decay: enters the gradient, so that it is scaled with it, but not its importance.
        nesterov: Nesterov's momentum, in torch's form.
        eps: added to I, in its unit; for "normalized" a share of M.
        form: which factor.
        beta: overall scale of "equation" and "full".
        sigma: added to the collective importance; above 0.
        gamma: weight of this group's elements in the sum; None is 1 / n with all n elements of the optimizer that are
            trained, so that the sum is a mean. Elements without a gradient in this step count 0.
        importance_decay: rho in [0, 1). Above 0, importance is a running mean of |g| with its bias corrected (4 bytes
            per parameter). That of a parameter without a gradient waits, as its momentum does.
        reset: "soft" makes the past of the running mean weigh `reset_decay` as much, "hard" nothing. Importance itself
            never becomes small by that, which would make the rates jump.
        reset_decay: in (0, 1).
        reset_every: steps between two resets.
        reset_spike: reset at a step whose mean |g| over the model exceeds its usual level so many times.
        factor_bounds: lowest and highest factor of "normalized", with 1 between them.
        maximize: ascend instead of descend.
        total_steps, kahan_sum, kernel, module, target_modules, embedding_lr_factor, foreach, capturable,
            differentiable, fused: see `SGGAdamW`.

    Raises:
        OptionError: (a ValueError) an option is out of range, or two contradict each other.
        KernelUnavailableError: (a RuntimeError, at the first step) `kernel="compiled"`, and no compiler works.
        ValueError: `target_modules` matches nothing, or a parameter is complex.
    """

    base = SGDRule()
    scaler = DGSScaler()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        eps: float = 1e-8,
        **options: Any,
    ) -> None:
        of_base = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "eps": eps,
        }
        super().__init__(params, of_base, **options)


class DGSLARS(_DGS):
    """DGS on LARS (You, Gitman and Ginsburg, arXiv 1708.03888): the factor multiplies what leaves the momentum buffer.

        b <- momentum b + ratio (g + weight_decay w)
        ratio = trust_coefficient ||w|| / (||g|| + weight_decay ||w||), 1 for vectors and scalars
        theta_i <- theta_i - lr factor_i b_i

    Norms are those of whole layers, however they are sharded. With `form="equation", sigma=1, gamma=0` it is LARS.

    Args:
        params: see `DGSSGD`.
        lr: learning rate.
        momentum: what is kept of the buffer.
        weight_decay: see the formulas.
        trust_coefficient: eta, share of a layer's norm that a step at a learning rate of 1 may be.
        eps: see `DGSSGD`; the trust ratio has none.
        **options: those of `DGSSGD` from `form` on.

    Raises:
        See `DGSSGD`.
    """

    base = LARSRule()
    scaler = DGSScaler()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        *,
        eps: float = 1e-8,
        **options: Any,
    ) -> None:
        of_base = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
        }
        super().__init__(params, of_base, **options)


class DGSAdamW(_DGS):
    """DGS on AdamW: the factor multiplies Adam's update, and not the decoupled weight decay.

    "importance" and "full" divide an update that Adam has normalized once by the gradient again. Learning rates that
    fit are of the order of the gradients then (1e-7 and the like); with `form="normalized"` they are the usual ones.

    Args:
        params: see `DGSSGD`.
        lr, betas, eps, weight_decay, amsgrad, nesterov, moments_dtype: see `SGGAdamW`.
        importance_eps: added to the importance, see `eps` of `DGSSGD`; None is Adam's `eps`.
        **options: those of `DGSSGD` from `form` on.

    Raises:
        See `DGSSGD`.
    """

    base = AdamRule(decoupled_weight_decay=True)
    scaler = DGSScaler(on_adam=True)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        nesterov: bool = False,
        importance_eps: float | None = None,
        moments_dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        **options: Any,
    ) -> None:
        of_base = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "nesterov": nesterov,
            "importance_eps": importance_eps,
            "moments_dtype": moments_dtype,
        }
        super().__init__(params, of_base, **options)


class DGSAdam(DGSAdamW):
    """`DGSAdamW` with weight decay added to the gradient, as in `torch.optim.Adam`, so that it is scaled with it.

    Args and errors: see `DGSAdamW`. The default `weight_decay` is 0.
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
