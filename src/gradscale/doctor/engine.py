"""The engine that a configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gradscale.training.errors import ConfigError

Kind = Literal["single", "ddp", "fsdp1", "fsdp2", "zero", "other"]
PRECISIONS = ("no", "fp16", "bf16", "fp8")


@dataclass(frozen=True)
class Wrapping:
    """Which modules become units of FSDP.

    Attributes:
        policy: "TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP" or "NO_WRAP".
        classes: class names of the first; None takes the model's own `_no_split_modules`.
        min_num_params: least elements of a unit of the second.
    """

    policy: str = "NO_WRAP"
    classes: tuple[str, ...] | None = None
    min_num_params: int = 0


@dataclass(frozen=True)
class Engine:
    """How a run is distributed.

    Attributes:
        kind: "zero" is DeepSpeed, of any stage; "other" is one that gradscale does not support.
        name: for humans.
        origin: the file or option that says so.
        processes: ranks of all machines together.
        machines: machines.
        shards: ranks that share each layer; the others hold copies.
        mixed_precision: "no", "fp16", "bf16" or "fp8", as accelerate and the Trainer call it.
        offload: whether the optimizer's tensors are in the memory of the host.
        zero_stage: of DeepSpeed.
        master_dtype: dtype of the copies that the engine gives the optimizer; None where it gives it the parameters.
        sub_group_size: elements (of one rank) that ZeRO 3 puts into one tensor.
        flat_params: FSDP1 with `use_orig_params=False`.
        wrapping: the units of FSDP.
        settings: what else is worth printing, by name.
    """

    kind: Kind
    name: str
    origin: str
    processes: int = 1
    machines: int = 1
    shards: int = 1
    mixed_precision: str = "no"
    offload: bool = False
    zero_stage: int | None = None
    master_dtype: str | None = None
    sub_group_size: int = 10**9
    flat_params: bool = False
    wrapping: Wrapping = field(default_factory=Wrapping)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def copies(self) -> int:
        """How many ranks hold the same part of a layer."""
        return self.processes // self.shards


def plain_engine(origin: str, processes: int, machines: int, mixed_precision: str) -> Engine:
    """One process, or DistributedDataParallel on several."""
    if processes == 1:
        return Engine("single", "one process", origin, mixed_precision=mixed_precision)
    return Engine("ddp", "DDP", origin, processes, machines, mixed_precision=mixed_precision)


def precision(value: Any, name: str, origin: str) -> str:
    """Return a kind of mixed precision.

    Raises:
        ConfigError: there is no such kind.
    """
    if value is False:
        raise ConfigError(f'{origin}: {name}: no is read as false, which accelerate cannot use; write "no" in quotes')
    text = "no" if value is None else str(value).lower()
    if text not in PRECISIONS:
        raise ConfigError(f"{origin}: {name}={value!r} is not allowed: expected one of {', '.join(PRECISIONS)}")
    return text
