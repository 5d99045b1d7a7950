"""The options of each base and each scaler: one table each, read by constructors, `--optim_args` and the docs.

Standard library only. `lr` and `weight_decay` are `TrainingArguments` of their own (`--learning_rate`,
`--weight_decay`), so they stand in no table here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from gradscale.options import Auto, Choice, Flag, Integer, Interval, Maybe, Off, Option, Pair, Real, RunLength

ADAM: Mapping[str, Option] = MappingProxyType(
    {
        "betas": Option(
            Pair(Real(0.0, 1.0, high_open=True)),
            (0.9, 0.999),
            "decay rates of the first and second moment",
            "Invalid beta parameter",
        ),
        "eps": Option(Real(0.0), 1e-8, "added to the root of the second moment", "Invalid epsilon value"),
        "amsgrad": Option(Flag(), False, "divide by the largest second moment seen so far"),
        "nesterov": Option(Flag(), False, "look ahead: the gradient enters the update once more (NAdam)"),
        "moments_dtype": Option(
            Choice(("auto", "float32", "bfloat16")),
            "auto",
            "dtype of the moments; auto is the parameter's own (of float16 parameters float32)",
        ),
        "maximize": Option(Flag(), False, "ascend instead of descend"),
    }
)

# Of SGG on Adam. What measured best is another base than Adam as it is: see docs/quality.md.
SGG_ADAM: Mapping[str, Option] = MappingProxyType({**ADAM, "nesterov": replace(ADAM["nesterov"], default=True)})

LION: Mapping[str, Option] = MappingProxyType(
    {
        "betas": Option(
            ADAM["betas"].kind,
            (0.9, 0.99),
            "what the direction and what the momentum keep of the past",
            ADAM["betas"].invalid,
        ),
        "moments_dtype": ADAM["moments_dtype"],
        "maximize": ADAM["maximize"],
    }
)

LAMB: Mapping[str, Option] = MappingProxyType(
    {
        "betas": ADAM["betas"],
        "eps": Option(ADAM["eps"].kind, 1e-6, ADAM["eps"].help, ADAM["eps"].invalid),
        "trust_clip": Option(Flag(), False, "no trust ratio above 1"),
        "adapt_vectors": Option(Flag(), False, "trust ratios of vectors and scalars too, not only of matrices"),
        "moments_dtype": ADAM["moments_dtype"],
        "maximize": ADAM["maximize"],
    }
)

_MOMENTUM = Option(Real(0.0, 1.0, high_open=True), 0.0, "what is kept of the momentum buffer", "Invalid momentum value")

SGD: Mapping[str, Option] = MappingProxyType(
    {
        "momentum": _MOMENTUM,
        "dampening": Option(Real(0.0, 1.0), 0.0, "share of the gradient that does not enter the momentum buffer"),
        "nesterov": Option(Flag(), False, "Nesterov's momentum, in torch's form"),
        "maximize": Option(Flag(), False, "ascend instead of descend"),
    }
)

LARS: Mapping[str, Option] = MappingProxyType(
    {
        "momentum": Option(_MOMENTUM.kind, 0.9, _MOMENTUM.help, _MOMENTUM.invalid),
        "trust_coefficient": Option(Real(0.0, low_open=True), 1e-3, "eta, share of a layer's norm that a step may be"),
        "maximize": Option(Flag(), False, "ascend instead of descend"),
    }
)

# Options of every optimizer with a step of its own, whatever the base and the scaler.
KAHAN_SUM = Option(Flag(), False, "keep what rounding takes from 16-bit parameters, and give it back (2 bytes each)")
STEP: Mapping[str, Option] = MappingProxyType(
    {
        "kernel": Option(
            Choice(("auto", "compiled", "eager")),
            "auto",
            "run the step as code from torch.compile, operation by operation, or as the model's size suggests",
        ),
        "kahan_sum": KAHAN_SUM,
        "embedding_lr_factor": Option(
            Auto(Real(0.0, low_open=True)),
            1.0,
            "what the learning rate of the input embedding is multiplied by; auto: 16, and 1 of one tied to the head",
        ),
    }
)

# Options of every optimizer's param groups.
COMMON: Mapping[str, Option] = MappingProxyType(
    {
        "weight_decay": Option(Real(0.0), 0.0, "weight decay coefficient", "Invalid weight_decay value"),
        "scaled": Option(Flag(), True, "scale the layers of this group"),
        "kahan_sum": KAHAN_SUM,
        "embedding_lr_factor": Option(
            Real(0.0, low_open=True),
            1.0,
            "what the learning rate of the input embedding is multiplied by in this group",
        ),
        "total_steps": Option(RunLength(), None, "optimizer steps of the run, for intervals given as a fraction of it"),
    }
)

LEARNING_RATE = Option(Real(0.0), None, "learning rate", "Invalid learning rate")

# Switches of torch's optimizers, taken so that code which sets them to their defaults runs unchanged.
TORCH_SWITCHES: Mapping[str, Option] = MappingProxyType(
    {name: Option(Off(), None, "") for name in ("foreach", "fused", "capturable", "differentiable")}
)

SGG: Mapping[str, Option] = MappingProxyType(
    {
        "n_clusters": Option(Integer(1, 64), 3, "K, clusters per layer; 1 leaves the base optimizer as it is"),
        "recluster_interval": Option(Interval(), 500, "T, steps between two groupings, or a fraction of the run"),
        "scale_decay": Option(Real(0.0, 1.0, high_open=True), 0.9, "beta3, decay rate of the scales (paper: 0.99)"),
        "scale_bounds": Option(
            Pair(Real(0.0, low_open=True), ordered=True), (0.1, 10.0), "lowest and highest ratio that enters a scale"
        ),
        "momentum_sign": Option(
            Choice(("signed", "absolute")), "signed", "group the momentum as it is, or its absolute value"
        ),
        "labels": Option(
            Choice(("frozen", "live")),
            "frozen",
            "keep each element's cluster until the next grouping (paper; 1 byte per parameter), or read it anew from "
            "today's momentum and the last boundaries (no memory)",
        ),
        "global_mda": Option(
            Choice(("clusters", "parameters", "layer")),
            "layer",
            "typical deviation: the median over the MDAs of all clusters of the model, over the deviations of all its "
            "parameters, or of the layer alone, with which its mean ratio is 1",
        ),
        "scope": Option(
            Choice(("all", "hidden", "auto")),
            "all",
            "which layers are scaled: all of two or more dimensions, or those between the input embedding and the "
            "output head; auto: hidden where the model is known",
        ),
        "grouping": Option(
            Choice(("kmeans", "layer", "static", "minibatch_kmeans", "gmm", "dbscan", "none")),
            "kmeans",
            "K clusters per layer; the whole layer as one (a scale per layer); rows of a layer (Adam-mini's blocks); "
            "scikit-learn's methods (slow); or none, which leaves the base optimizer as it is",
        ),
        "static_block": Option(
            Maybe(Integer(1)), None, "rows in a block of grouping=static, such as a head's; None: 1, a row is a block"
        ),
        "statistic": Option(
            Choice(("mda", "mean", "variance", "variance_sign", "l2", "mad", "none")),
            "mda",
            "what of a cluster is compared with the model's; none leaves the base optimizer as it is",
        ),
        "labels_device": Option(
            Choice(("device", "cpu", "hybrid")),
            "device",
            "where frozen labels and scales are kept: with the parameter, in host memory, or labels there and scales "
            "with the parameter",
        ),
        "pool": Option(
            Choice(("none", "lora")),
            "none",
            "group each layer alone, or LoRA's matrices of one kind in one parent module (A's of an attention block) "
            "as if they were one",
        ),
        "min_layer_size": Option(
            Integer(0), 48, "elements below which a layer (or pool) is one cluster: it gets one scale"
        ),
    }
)

# Of the adapter of SGG.
ADAPTER: Mapping[str, Option] = MappingProxyType(
    {
        "kept_momentum": Option(
            Choice(("mean", "gradient")),
            "mean",
            "what to group where the base keeps no momentum: a running mean of the gradient (4 bytes per parameter), "
            "or the gradient of that step (no memory)",
        ),
    }
)

_DGS: Mapping[str, Option] = MappingProxyType(
    {
        "form": Option(
            Choice(("equation", "importance", "full", "normalized")),
            "full",
            "the paper's equation, its algorithm, both, or relative to the layer's mean importance and bounded",
        ),
        "beta": Option(Real(0.0, low_open=True), 1.0, "overall scale of equation and full"),
        "sigma": Option(Real(0.0, low_open=True), 1.0, "added to the collective importance, by which both divide"),
        "gamma": Option(
            Maybe(Real(0.0)),
            None,
            "weight of this group's elements in the collective importance; None: 1 / all elements",
        ),
        "importance_decay": Option(
            Real(0.0, 1.0, high_open=True), 0.0, "rho of a running mean of |g| (4 bytes per parameter); 0: |g| itself"
        ),
        "reset": Option(Choice(("soft", "hard")), "soft", "whether a reset makes the past weigh less, or nothing"),
        "reset_decay": Option(
            Real(0.0, 1.0, low_open=True, high_open=True), 0.1, "how much the past weighs after a soft reset"
        ),
        "reset_every": Option(Maybe(Integer(1)), None, "steps between two resets"),
        "reset_spike": Option(
            Maybe(Real(1.0, low_open=True)), None, "reset when the mean |g| exceeds its usual level so many times"
        ),
        "factor_bounds": Option(
            Pair(Real(0.0, low_open=True), ordered=True), (0.1, 10.0), "lowest and highest factor of normalized"
        ),
    }
)
_IMPORTANCE_EPS = "added to the importance that divides; of normalized a share of the layer's mean"

DGS: Mapping[str, Option] = MappingProxyType({**_DGS, "eps": Option(Real(0.0), 1e-8, _IMPORTANCE_EPS)})
DGS_ON_ADAM: Mapping[str, Option] = MappingProxyType(
    {**_DGS, "importance_eps": Option(Maybe(Real(0.0)), None, f"{_IMPORTANCE_EPS}; None: eps")}
)
