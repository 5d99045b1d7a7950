"""The summary that a command prints: one line per optimizer, and the scales of every layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("optimizer", "optim", str),
    ("status", "status", str),
    ("steps", "global_step", str),
    ("val. loss", "validation_loss", lambda value: f"{value:.4f}"),
    ("perplexity", "perplexity", lambda value: f"{value:.3f}"),
    ("tokens/s", "tokens_per_second", lambda value: f"{value:,.0f}"),
    ("opt. share", "optimizer_share", lambda value: f"{100 * value:.1f} %"),
    ("wall time", "wall_seconds", lambda value: f"{value:,.1f} s"),
    ("state B/param", "optimizer_state_bytes_per_parameter", lambda value: f"{value:.2f}"),
)
_MOST_LAYERS = 48


def format_summary(results: Sequence[dict[str, Any]]) -> str:
    """Return the table of runs: final validation loss (nats per token) and perplexity, speed and memory.

    tokens/s and the optimizer's share are of the training steps alone, without the first three.
    """
    rows = [[_cell(result.get(key), text) for _, key, text in _COLUMNS] for result in results]
    return format_table([title for title, _, _ in _COLUMNS], rows, left=2)


def format_scales(result: dict[str, Any]) -> str:
    """Return the learning-rate scale of each cluster of each layer after the last grouping, and its share."""
    scales = result["scales"]
    layers = scales["layers"]
    clusters = max((len(layer["scales"]) for layer in layers.values()), default=0)
    rows = []
    for name, layer in list(layers.items())[:_MOST_LAYERS]:
        cells = [
            f"{scale:.3f} ({100 * count / layer['numel']:.0f} %)" if count else "-"
            for scale, count in zip(layer["scales"], layer["counts"], strict=True)
        ]
        rows.append([name, f"{layer['numel']:,}", *cells])
    header = ["layer", "elements", *(f"cluster {index}" for index in range(clusters))]
    lines = [f"{result['optim']}: scales per layer after the grouping at step {scales['step']} (share of its elements)"]
    lines.append(format_table(header, rows, left=1))
    if len(layers) > _MOST_LAYERS:
        lines.append(f"... and {len(layers) - _MOST_LAYERS} more layers in scales.jsonl")
    if scales["waiting"]:
        lines.append(f"waiting for a finite momentum: {', '.join(scales['waiting'])}")
    return "\n".join(lines)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Return aligned columns, the first `left` of them to the left and the others to the right."""
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def _cell(value: Any, text: Callable[[Any], str]) -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return text(value)
