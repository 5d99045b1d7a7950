"""What steps and groupings move and send, on paper: formulas, and the table of docs/speed.md.

A step is bound by memory: its time is the bytes that it moves over the bandwidth. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradscale.bench.shapes import Shape, Workload, llama

COUNTS = 65_281  # numbers per layer in a grouping: the bins, and one for inf and NaN
_COUNT_BYTES = 4  # as sent: int32, for layers of at most 2^31 - 1 elements
# What the statistics of a layer (clusters, deviations) read and write: all bins once, to find those that are occupied,
# and then these some thousand many times. Counted over the tensor operations for K = 3 on normal random numbers;
# tests/bench/test_cost_model.py counts again.
STATISTICS_BYTES = 4_000_000


@dataclass(frozen=True)
class Layout:
    """Bytes per element of what a step reads and writes.

    Attributes:
        param: of parameters.
        grad: of gradients.
        moment: of each of the two moments.
        label: 1 with `labels=frozen`, 0 with `labels=live`.
        compensation: of what Kahan's summation keeps beside a 16-bit parameter; 0 without it.
    """

    param: int = 4
    grad: int = 4
    moment: int = 4
    label: int = 1
    compensation: int = 0

    @property
    def state(self) -> int:
        """Bytes of state per parameter."""
        return 2 * self.moment + self.label + self.compensation

    @property
    def step(self) -> int:
        """Bytes per parameter that one pass of a step moves: p, m, v read and written, g and the label read."""
        return 2 * self.param + self.grad + 2 * 2 * self.moment + self.label + 2 * self.compensation

    @property
    def grouping(self) -> int:
        """Bytes per parameter that a step moves more at least when it groups.

        m is read and counted; m and v are read again, because the parameter moves in a pass of its own, which also
        writes the label.
        """
        return self.moment + 2 * self.moment + self.label


@dataclass(frozen=True)
class Hardware:
    """Bytes per second."""

    memory: float
    network: float


@dataclass(frozen=True)
class Cost:
    """What one rank has and does, in elements, bytes and seconds.

    Attributes:
        parameters: elements on this rank.
        state: bytes of the optimizer's state.
        step: bytes moved by a step.
        grouping: bytes moved by a grouping.
        sent: bytes sent by a grouping.
        step_seconds: time of a step.
        grouping_seconds: time of a grouping, beside the step it is part of.
    """

    parameters: float
    state: float
    step: float
    grouping: float
    sent: float
    step_seconds: float
    grouping_seconds: float

    def amortized(self, interval: int) -> float:
        """Time of a step with its share of groupings every `interval` steps, in steps without."""
        return 1 + self.grouping_seconds / interval / self.step_seconds


def cost(workload: Workload, ranks: int, layout: Layout, hardware: Hardware) -> Cost:
    """Return what each of `ranks` has and does where all of them share every tensor evenly, as in ZeRO 3 and FSDP."""
    parameters = workload.parameters / ranks
    step = parameters * layout.step
    # The elements are shared. The statistics are not: every rank computes those of every layer, from the same counts.
    grouping = parameters * layout.grouping + workload.layers * STATISTICS_BYTES
    sent = ring(workload.layers * COUNTS * _COUNT_BYTES, ranks)
    return Cost(
        parameters=parameters,
        state=parameters * layout.state,
        step=step,
        grouping=grouping,
        sent=sent,
        step_seconds=step / hardware.memory,
        grouping_seconds=grouping / hardware.memory + sent / hardware.network,
    )


def ring(size: float, ranks: int) -> float:
    """Bytes that each rank sends in a ring all-reduce of `size` bytes."""
    return 2 * (ranks - 1) / ranks * size


H100 = Hardware(memory=3.35e12, network=50e9)
INTERVAL = 500
_RANKS = (1, 8, 64)


def _model(name: str, shapes: tuple[Shape, ...]) -> Workload:
    return Workload(name, "", shapes)


MODELS = (
    _model("LLaMA-60M", llama(512, 1376, 8)),
    _model("LLaMA-1B", llama(2048, 5461, 24)),
    _model("LLaMA-2-7B", llama(4096, 11008, 32)),
    _model("LLaMA-2-70B", llama(8192, 28672, 80, kv=1024)),
)
_HEADER = (
    "model",
    "parameters",
    "layers",
    "ranks",
    "parameters per rank",
    "state per rank",
    "moved per step",
    "step",
    "moved per grouping",
    "sent per grouping",
    "grouping",
    "in steps",
    f"amortized, T = {INTERVAL}",
)


def table(layout: Layout = Layout(), hardware: Hardware = H100) -> str:
    """Return the Markdown table of docs/speed.md, per rank: float32 and frozen labels unless told."""
    rows = [_HEADER, ("---",) * len(_HEADER)]
    for model in MODELS:
        for ranks in _RANKS:
            one = cost(model, ranks, layout, hardware)
            rows.append(
                (
                    model.name,
                    _short(model.parameters),
                    str(model.layers),
                    str(ranks),
                    _short(one.parameters),
                    f"{_short(one.state)}B",
                    f"{_short(one.step)}B",
                    _time(one.step_seconds),
                    f"{_short(one.grouping)}B",
                    f"{_short(one.sent)}B" if one.sent else "0",
                    _time(one.grouping_seconds),
                    f"{one.grouping_seconds / one.step_seconds:.1f}",
                    f"{one.amortized(INTERVAL):.3f}",
                )
            )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} T"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.3g} µs"
