"""What a checkpoint's optimizer state says of SGG's clusters: momentum, labels, boundaries, scales and rates per layer.

Read from the `optimizer.pt` of a Trainer alone, whatever made the model: no optimizer is built.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gradscale.adapter.momentum import dense, is_quantized
from gradscale.plots.names import parameter_names
from gradscale.scalers.sgg import assign_labels
from gradscale.training.errors import ConfigError
from gradscale.training.files import read_json
from gradscale.training.output_folder import OPTIMIZER, STATE

_SHARDED = ("optimizer.bin", "optimizer_*", "global_step*", "pytorch_model_fsdp*")
# What optimizers call a momentum. That of the adapter comes first: it keeps one where its base has none.
_MOMENTA = ("momentum", "exp_avg", "momentum_buffer", "state1", "m")
_BITSANDBYTES = "__bnb_optimizer_quant_state__"
_SECOND = ("max_exp_avg_sq", "exp_avg_sq")


@dataclass(frozen=True)
class ClusterLayer:
    """One layer, with N elements in K clusters.

    Attributes:
        name: of the parameter, or its number where the name is not known.
        momentum: float32 `[N]`, what is grouped; its absolute values with `momentum_sign=absolute`.
        absolute: whether these are absolute values.
        labels: uint8 `[N]`, cluster of each element.
        boundaries: between the intervals of the last grouping, ascending; fewer than K - 1 where clusters are empty.
        scales: of the learning rate, `[K]`.
        rate: the learning rate, before it is scaled.
        divisor: float32 `[N]`, what Adam divides an element's direction by, sqrt(v / (1 - beta2^t)) + eps; NaN where
            it has had no gradient, None of optimizers without a second moment of each element.
    """

    name: str
    momentum: Tensor
    absolute: bool
    labels: Tensor
    boundaries: tuple[float, ...]
    scales: tuple[float, ...]
    rate: float
    divisor: Tensor | None


class NoClusters(ConfigError):
    """A checkpoint that is readable and has no clusters to draw."""


class OtherOptimizer(NoClusters):
    """That of an optimizer without SGG."""


class Checkpoint:
    """The scaled layers of a checkpoint; their tensors are read when they are asked for.

    Args:
        folder: of the checkpoint.

    Raises:
        ConfigError: its optimizer state is damaged.
        NoClusters: it holds no optimizer state of one process, or none of SGG, or no clusters yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        saved = _load(folder)
        trainer = read_json(folder / STATE)
        self.step: int | None = trainer.get("global_step") if isinstance(trainer, dict) else None
        groups = {key: group for group in saved["param_groups"] for key in group["params"]}
        states = {key: _flat(saved["state"].get(key, {})) for key in groups}
        self._prefix = "sgg_" if any("sgg_scales" in state for state in states.values()) else ""
        scaled = {key: state for key, state in states.items() if f"{self._prefix}scales" in state}
        if not scaled:
            keys = sorted({str(name) for state in states.values() for name in state})
            raise OtherOptimizer(
                f"{str(folder)!r} is a checkpoint of another optimizer (its state has {', '.join(keys) or 'nothing'}): "
                "clusters are those of the sgg_ optimizers"
            )
        if not any(f"{self._prefix}boundaries" in state for state in scaled.values()):
            raise NoClusters(
                f"{str(folder)!r} has no clusters: with grouping=static, layers are cut into blocks of rows"
            )
        shapes = {key: _shape(state) for key, state in states.items()}
        scales = {key: state[f"{self._prefix}scales"] for key, state in scaled.items()}
        names = parameter_names(folder, saved["param_groups"], shapes, scales, self.step)
        self._entries = {
            names[key]: (state, groups[key])
            for key, state in scaled.items()
            if self._has_grouped(state)  # before the first grouping, and in layers too small for several clusters
        }
        if not self._entries:
            raise NoClusters(f"{str(folder)!r} was written before the first grouping: every layer is one cluster yet")

    @property
    def names(self) -> list[str]:
        """The layers that have been grouped into clusters, in the order of the optimizer."""
        return list(self._entries)

    @property
    def schedule_has_ended(self) -> bool:
        """Whether the learning rate is 0 from now on; `ClusterLayer.rate` is that of the schedule's peak then."""
        return all(float(group["lr"]) == 0 for _, group in self._entries.values())

    def read(self, name: str) -> ClusterLayer:
        """Return a layer.

        Raises:
            ConfigError: its momentum is not in the state, or damaged.
        """
        state, group = self._entries[name]
        momentum, rate = self._momentum(name, state), float(group["lr"])
        if self.schedule_has_ended:
            rate = float(group.get("initial_lr") or rate)
        absolute = group.get(f"{self._prefix}momentum_sign") == "absolute"
        boundaries = state[f"{self._prefix}boundaries"].float()
        labels = self._labels(state, momentum, boundaries, absolute)
        return ClusterLayer(
            name=name,
            momentum=momentum.abs() if absolute else momentum,
            absolute=absolute,
            labels=labels,
            boundaries=tuple(edge for edge in boundaries.tolist() if edge != float("inf")),
            scales=tuple(state[f"{self._prefix}scales"].float().tolist()),
            rate=rate,
            divisor=_divisor(state, group, momentum.numel()),
        )

    def _has_grouped(self, state: Mapping[str, Any]) -> bool:
        boundaries = state.get(f"{self._prefix}boundaries")
        return boundaries is not None and bool(boundaries.isfinite().any())

    def _momentum(self, name: str, state: Mapping[str, Any]) -> Tensor:
        labels = state.get(f"{self._prefix}labels")
        for key in (f"{self._prefix}momentum" if self._prefix else "", *_MOMENTA[1:]):
            value = state.get(key)
            if not isinstance(value, Tensor) or not (value.dim() >= 2 or is_quantized(state, key)):
                continue
            found = cast(Tensor, dense(state, key)).float().flatten()
            if labels is None or labels.numel() == found.numel():
                return found
        raise ConfigError(
            f"{str(self.folder)!r} holds no momentum of {name} (its state has {', '.join(map(str, state))}): without "
            "one the gradient was grouped, which no checkpoint keeps. sgg_sgd has one with momentum=0.9, and adapters "
            "keep one with kept_momentum=mean"
        )

    def _labels(self, state: Mapping[str, Any], momentum: Tensor, boundaries: Tensor, absolute: bool) -> Tensor:
        frozen = state.get(f"{self._prefix}labels")
        if frozen is not None:
            return cast(Tensor, frozen).to(torch.uint8).flatten()
        labels = assign_labels(momentum, boundaries, absolute=absolute)
        owners = state.get(f"{self._prefix}owners")
        return labels if owners is None else owners.to(torch.uint8)[labels.long()]


def _load(folder: Path) -> dict[str, Any]:
    path = folder / OPTIMIZER
    if not path.is_file():
        sharded = [found.name for pattern in _SHARDED for found in sorted(folder.glob(pattern))]
        if sharded:
            raise NoClusters(
                f"{str(folder)!r} is a checkpoint of FSDP or DeepSpeed ({sharded[0]}): clusters are drawn from the "
                f"{OPTIMIZER} that one process and DDP write"
            )
        raise NoClusters(f"{str(folder)!r} holds no {OPTIMIZER}: train with save_only_model=false")
    try:
        saved = _unpickled(path)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{str(path)!r} cannot be read, it is damaged or its end is missing: {reason}") from None
    good = isinstance(saved, dict) and isinstance(saved.get("state"), dict) and saved.get("param_groups")
    if not good:
        raise ConfigError(f"{str(path)!r} is no optimizer state (it has no state and param_groups)")
    return cast(dict[str, Any], saved)


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        if "torchao" not in str(error):
            raise
        import torchao.optim  # noqa: F401  # makes its tensors loadable

        return torch.load(path, map_location="cpu", weights_only=True)


def _flat(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's state with that of bitsandbytes, which saves its own one level below, beside the rest."""
    return {**state, **state.get(_BITSANDBYTES, {})}


def _shape(state: Mapping[str, Any]) -> torch.Size | None:
    """Return the shape of the parameter, as far as its state tells."""
    for key in ("labels", "sgg_labels", "exp_avg", "momentum_buffer", "sgg_momentum"):
        if isinstance(state.get(key), Tensor) and state[key].dim() > 0:
            return cast(torch.Size, state[key].shape)
    return None


def _divisor(state: Mapping[str, Any], group: Mapping[str, Any], numel: int) -> Tensor | None:
    second = next((state[key] for key in _SECOND if isinstance(state.get(key), Tensor)), None)
    if second is None or second.numel() != numel or is_quantized(state, "exp_avg_sq"):
        return None
    if "betas" not in group or "step" not in state or not isinstance(group.get("eps"), float):
        return None  # another rule than Adam's
    correction = 1 - float(group["betas"][1]) ** float(state["step"])
    second = second.float().flatten()
    # An element that has had no gradient yet, such as those of a token that was not seen, has no rate to speak of.
    seen = torch.where(second > 0, second, torch.nan)
    return cast(Tensor, (seen / correction).sqrt() + float(group["eps"]))
