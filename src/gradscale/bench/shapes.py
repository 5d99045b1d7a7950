"""Tensors of well-known models, by shape alone: a step costs what its tensors are, not what they mean.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Llama:
    """A LLaMA's sizes; the vocabulary is that of the tokenizer. Output layer and embedding are two matrices.

    Attributes:
        hidden: width.
        intermediate: width of the MLP.
        blocks: number of transformer blocks.
        heads: of each.
    """

    hidden: int
    intermediate: int
    blocks: int
    heads: int

    def config(self) -> dict[str, Any]:
        """Return what `model_config` is, written out."""
        return {
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "tie_word_embeddings": False,
        }


# Sizes of models to train, by the value of `model_config`. From 60m on they are those of GaLore's pre-training
# configurations (arXiv 2403.03507) and of SGG's paper; 1m is that of recipes/quality/small.yaml.
LLAMAS: Mapping[str, Llama] = MappingProxyType(
    {
        "llama-1m": Llama(128, 344, 4, 4),
        "llama-7m": Llama(256, 688, 8, 4),
        "llama-20m": Llama(384, 1024, 8, 6),
        "llama-60m": Llama(512, 1376, 8, 8),
        "llama-130m": Llama(768, 2048, 12, 12),
        "llama-350m": Llama(1024, 2736, 24, 16),
        "llama-1b": Llama(2048, 5461, 24, 32),
    }
)


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


def _named(name: str) -> Workload:
    size = LLAMAS[name]
    summary = f"LLaMA, {size.blocks} blocks of width {size.hidden}"
    return Workload(name, summary, llama(size.hidden, size.intermediate, size.blocks))


_ALL = (
    *map(_named, ("llama-60m", "llama-130m", "llama-350m", "llama-1b")),
    Workload("lora-1b", "LoRA, r = 16, on all linear layers of Llama-3.2-1B", lora(16, 2048, 8192, 16, kv=512)),
    Workload("tiny", "for a look at the output, and for tests", llama(32, 80, 2, vocabulary=100)),
)
WORKLOADS: Mapping[str, Workload] = MappingProxyType({workload.name: workload for workload in _ALL})
