"""A diagnosis as text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_WIDTH = 100  # of what is wrapped
_INTERVAL = "recluster_interval"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|(?<=\.)\d+$")


def render(report: Mapping[str, Any], *, every_parameter: bool) -> str:
    """Return the text of what `diagnose` returned.

    Args:
        report: the diagnosis.
        every_parameter: list every parameter, instead of one line for each kind of layer.
    """
    parts = [_versions(report), _registration(report)]
    if "engine" in report:
        parts.append(_engine(report["engine"]))
    if "model" in report:
        parts += [_model(report), _parameters(report["parameters"], every_parameter), _optimizer(report)]
        if "memory" in report:
            parts += [_memory(report["memory"], report["optimizer"]), _sent(report)]
    parts += [_list("Not supported", report["not_supported"]), _list("Watch out", report["watch_out"])]
    count = len(report["not_supported"])
    verdict = "would run" if not count else f"would not run as asked: {count} not supported"
    return "\n\n".join([part for part in parts if part] + [f"Verdict: {verdict}"])


def _versions(report: Mapping[str, Any]) -> str:
    rows = [["Versions", "found", "tested with"]]
    for name, version in report["versions"].items():
        rows.append([f"  {name}", version["found"] or "none", version["tested"] or ""])
    return _table(rows)


def _registration(report: Mapping[str, Any]) -> str:
    known = report["registration"]["optim"]
    names = ", ".join(name for name, there in known.items() if there) or "none"
    autoload = report["registration"]["autoload"]
    first, *rest = textwrap.wrap(names, _WIDTH)
    return _table(
        [
            ["Registration", ""],
            ["  values of --optim", first],
            *(["", line] for line in rest),
            ["  without a launcher", "yes" if autoload == "on" else "no"],
        ]
    )


def _engine(engine: Mapping[str, Any]) -> str:
    machines = f"{engine['machines']} machine{'s' if engine['machines'] > 1 else ''}"
    rows = [["Engine", engine["name"]], ["  from", engine["origin"]]]
    if engine["processes"] > 1:
        rows.append(["  processes", f"{engine['processes']}, on {machines}"])
        shared = f"{engine['shards']} ranks" + (f", in {engine['copies']} copies" if engine["copies"] > 1 else "")
        rows.append(["  a layer is shared by", shared if engine["shards"] > 1 else "none: each rank has all of it"])
    rows.append(["  mixed precision", engine["mixed_precision"]])
    for name, value in engine["settings"].items():
        rows.append(
            [f"  {name}", {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else str(value)]
        )
    return _table(rows)


def _model(report: Mapping[str, Any]) -> str:
    model = report["model"]
    trained = model["trainable"]
    share = "all trained" if trained == model["parameters"] else f"{trained:,} trained"
    name = model["class"] + (" with adapters" if model["adapters"] else "")
    return _table([["Model", name], ["  parameters", f"{model['parameters']:,} in {model['dtypes']}, {share}"]])


def _parameters(parameters: Sequence[Mapping[str, Any]], every: bool) -> str:
    rows = [
        ["Parameters" if every else "Parameters by kind", "shape", *([] if every else ["count"]), "scaled", "sharding"]
    ]
    kinds: dict[tuple[str, ...], int] = {}
    for one in parameters:
        name = one["name"] if every else _NUMBER.sub("*", one["name"])
        scaled = "yes" if one["scaled"] else f"no: {one['why_not']}"
        also = f" (also {', '.join(one['also'])})" if one["also"] else ""
        ranks = "" if one["ranks"] is None or not every else f" (this: {_range(*one['ranks'])})"
        key = (f"  {name}{also}", str(one["shape"]), scaled, one["sharding"] + ranks)
        kinds[key] = kinds.get(key, 0) + 1
    for (name, shape, scaled, sharding), count in kinds.items():
        rows.append([name, shape, *([] if every else [str(count)]), scaled, sharding])
    return _table(rows)


def _optimizer(report: Mapping[str, Any]) -> str:
    optimizer, trained = report["optimizer"], report["model"]["trainable"]
    options = optimizer["options"]
    elements = optimizer["scaled_elements"]
    share = f"{100 * elements / trained:.4g} % of what is trained" if trained else "none"
    interval, groupings = optimizer["interval"], optimizer["groupings"]
    when = [f"every {interval} steps"]
    if not interval:
        when = [f"every {options[name]} of the run (--max_steps tells)" for name in options if name == _INTERVAL]
    times = "" if groupings is None else f", {groupings} times in the run"
    words = ", ".join(f"{name}={_value(value)}" for name, value in options.items())
    first, *rest = textwrap.wrap(words, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return _table(
        [
            ["Optimizer", f"{optimizer['name']} ({optimizer['class']})"],
            ["  options", first],
            *(["", line] for line in rest),
            ["  scaled layers", f"{optimizer['scaled_layers']}, {elements:,} elements ({share})"],
            *(["  grouped", words + times] for words in when),
        ]
    )


def _memory(memory: Mapping[str, Any], optimizer: Mapping[str, Any]) -> str:
    extra = memory["state"] - memory["adamw"]
    grouped = _INTERVAL in optimizer["options"]
    rows = [
        [f"Memory of the optimizer, on the rank that holds most ({memory['where']})", ""],
        [f"  moments (of tensors in {memory['stepped_in']})", size(memory["moments"])],
        ["  labels" if grouped else "  running importance", size(memory["labels"])],
        [f"  {'scales, boundaries' if grouped else 'sums of layers'}, step counts", size(memory["scales"])],
        ["  state, together", size(memory["state"])],
        [
            "    torch's AdamW for comparison",
            f"{size(memory['adamw'])} ({'+' if extra >= 0 else '-'}{size(abs(extra))} here)",
        ],
        ["  for a moment in each step, up to", size(memory["step"])],
    ]
    if optimizer["scaled_layers"] and grouped:
        rows.append(["  for a moment in a grouping, about", size(memory["grouping"])])
    return _table(rows)


def _sent(report: Mapping[str, Any]) -> str:
    sent, layers = report["sent"], report["optimizer"]["scaled_layers"]
    if report["engine"]["processes"] == 1 or not layers:
        return ""
    if sent["counts_per_layer"] is None:
        if not sent["all_reduce"]:
            return _table([["Sent in each step", "nothing: every rank has all that it needs"]])
        traffic = size(sent["ring_traffic_per_rank"])
        rows = [["Sent in each step", "one all-reduce"], ["  of", size(sent["all_reduce"])]]
        return _table([*rows, ["  as a ring, from each rank", traffic]])
    if not sent["all_reduce"]:
        return _table([["Sent in a grouping", "nothing: every rank groups its whole copy"]])
    width = sent["all_reduce"] // (layers * sent["counts_per_layer"])
    counts = f"{layers} layers x {sent['counts_per_layer']:,} counts x {width} bytes = {size(sent['all_reduce'])}"
    traffic = size(sent["ring_traffic_per_rank"])
    rows = [["Sent in a grouping", "one all-reduce"], ["  of", counts], ["  as a ring, from each rank", traffic]]
    if sent["in_each_step"]:
        rows += [["Sent in each step, for trust ratios", f"one all-reduce of {size(sent['in_each_step'])}"]]
    return _table(rows)


def _list(title: str, sentences: Sequence[str]) -> str:
    return "\n".join([title, *(f"  - {sentence}" for sentence in sentences)]) if sentences else ""


def size(number: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(number)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _range(first: int, last: int) -> str:
    return f"rank {first}" if first == last else f"ranks {first} to {last}"


def _value(value: Any) -> str:
    return f"[{','.join(map(_value, value))}]" if isinstance(value, list | tuple) else str(value)


def _table(rows: Iterable[Sequence[str]]) -> str:
    rows = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
