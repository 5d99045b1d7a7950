"""Tensors of well-known models, by shape alone: a step costs what its tensors are, not what they mean.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """What an optimizer is asked to step.

    Attributes:
        name: value of `--shapes`.
        summary: one line for humans.
        shapes: of all trained tensors.
    """

    name: str
    summary: str
    shapes: tuple[Shape, ...]

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return len(self.shapes)

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def layers(self) -> int:
        """Tensors of two or more dimensions, which are those that are scaled."""
        return sum(len(shape) >= 2 for shape in self.shapes)


def llama(hidden: int, intermediate: int, blocks: int, *, vocabulary: int = 32000, kv: int = 0) -> tuple[Shape, ...]:
    """Return the tensors of a LLaMA whose output layer is not tied to its embedding.

    Args:
        hidden: width.
        intermediate: width of the MLP.
        blocks: number of transformer blocks.
        vocabulary: number of tokens.
        kv: width of keys and values together over their heads; 0 is `hidden`.
    """
    embedding = (vocabulary, hidden)
    block: tuple[Shape, ...] = (
        *((rows, columns) for columns, rows in _linear(hidden, intermediate, kv or hidden)),
        *((hidden,),) * 2,
    )
    return (embedding, *block * blocks, (hidden,), embedding)


def lora(rank: int, hidden: int, intermediate: int, blocks: int, *, kv: int) -> tuple[Shape, ...]:
    """Return A `[rank, in]` and B `[out, rank]` of adapters on all linear layers of a LLaMA's blocks."""
    pairs = [
        ((rank, inputs), (outputs, rank))
        for _ in range(blocks)
        for inputs, outputs in _linear(hidden, intermediate, kv)
    ]
    return tuple(shape for pair in pairs for shape in pair)


def _linear(hidden: int, intermediate: int, kv: int) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of a block's q, k, v, o, gate, up and down."""
    attention = (hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)
    return (*attention, (hidden, intermediate), (hidden, intermediate), (intermediate, hidden))


# The sizes are those of GaLore's pre-training configurations (arXiv 2403.03507).
_ALL = (
    Workload("llama-60m", "LLaMA, 8 blocks of width 512", llama(512, 1376, 8)),
    Workload("llama-130m", "LLaMA, 12 blocks of width 768", llama(768, 2048, 12)),
    Workload("llama-350m", "LLaMA, 24 blocks of width 1024", llama(1024, 2736, 24)),
    Workload("llama-1b", "LLaMA, 24 blocks of width 2048", llama(2048, 5461, 24)),
    Workload("lora-1b", "LoRA, r = 16, on all linear layers of Llama-3.2-1B", lora(16, 2048, 8192, 16, kv=512)),
    Workload("tiny", "for a look at the output, and for tests", llama(32, 80, 2, vocabulary=100)),
)
WORKLOADS: Mapping[str, Workload] = MappingProxyType({workload.name: workload for workload in _ALL})
