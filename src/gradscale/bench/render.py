"""Measurements as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradscale.bench.problem import NOTHING
from gradscale.doctor.render import size
from gradscale.training.summary import format_table

_Column = tuple[str, Callable[[Mapping[str, Any]], str]]
_NONE = "-"


def step_text(report: Mapping[str, Any]) -> str:
    """Return the text of `gradscale bench step`."""
    baseline = next(
        (entry["optimizer"] for one in report["results"] for entry in one["optimizers"] if entry["is_baseline"]), ""
    )
    method = report["method"]
    parts = [_machine(report)]
    for one in report["results"]:
        shared = one["shared"]
        apart = "own parameters and gradients" if shared == NOTHING else f"{shared} shared, for want of memory"
        rate = one["in_place_pass"]["bytes_per_second"]["median"] / 1e9
        head = f"{_workload(one)}; each optimizer: {apart}; a pass in place: {rate:.1f} GB/s"
        parts.append(f"{head}\n\n{_table(one['optimizers'], _step_columns(method))}")
    turns = f"{method['rounds']} rounds, in each of them {method['steps']} steps of every optimizer"
    if baseline:
        parts.append(f"ratio: median (quartiles) of {turns}, to {baseline}")
        if method["groupings"]:
            parts[-1] += f"; grouping: what a step takes longer that groups, T = {method['interval']}"
    return "\n\n".join(parts + _skipped(report))


def memory_text(report: Mapping[str, Any]) -> str:
    """Return the text of `gradscale bench memory`."""
    parts = [_machine(report)]
    for one in report["results"]:
        parts.append(f"{_workload(one)}\n\n{_table(one['optimizers'], _memory_columns(one))}")
    parts.append(
        "state: bytes per parameter; beyond AdamW: than two moments in the parameters' dtype; extra: at the peak"
    )
    return "\n\n".join(parts + _skipped(report))


def _step_columns(method: Mapping[str, Any]) -> list[_Column]:
    columns: list[_Column] = [
        ("step", lambda entry: _ms(entry["step_seconds"]["median"])),
        ("ns/param", lambda entry: f"{entry['nanoseconds_per_parameter']['median']:.3f}"),
        ("ratio", lambda entry: _spread(entry["ratio"])),
    ]
    if method["groupings"]:
        columns += [
            ("grouping", lambda entry: _ms(entry["grouping"]["seconds"]["median"]) if entry["grouping"] else _NONE),
            (
                "in base steps",
                lambda entry: _spread(entry["grouping"]["baseline_steps"]) if entry["grouping"] else _NONE,
            ),
            ("amortized", lambda entry: _spread(entry["amortized_ratio"]) if entry["grouping"] else _NONE),
        ]
    columns += [
        ("state B/param", lambda entry: f"{entry['state_bytes_per_parameter']:.3f}"),
        ("GB/s", lambda entry: f"{entry['bytes_per_second']['median'] / 1e9:.1f}"),
        ("of a pass", lambda entry: f"{100 * entry['share_of_in_place_pass']['median']:.0f} %"),
        ("first step", lambda entry: f"{entry['first_step_seconds']:.2f} s"),
    ]
    if method["groupings"]:
        columns.append(
            (
                "first grouping",
                lambda entry: f"{entry['first_grouping_seconds']:.2f} s" if entry["grouping"] else _NONE,
            )
        )
    return columns


def _memory_columns(one: Mapping[str, Any]) -> list[_Column]:
    number, entries = one["parameters"], one["optimizers"]
    keys = dict.fromkeys(key for entry in entries for key in entry["state_bytes"])
    # What a few numbers per layer come to is summed up.
    large = [key for key in keys if any(entry["state_bytes"].get(key, 0) >= 0.1 * number for entry in entries)]

    def per_parameter(bytes_: int) -> str:
        return f"{bytes_ / number:.3f}" if bytes_ else "0"

    def of_key(key: str) -> _Column:
        return key, lambda entry: per_parameter(entry["state_bytes"].get(key, 0))

    def rest(entry: Mapping[str, Any]) -> str:
        return per_parameter(sum(size for key, size in entry["state_bytes"].items() if key not in large))

    return [
        *map(of_key, large),
        ("rest", rest),
        ("state", lambda entry: f"{entry['state_bytes_per_parameter']:.3f}"),
        ("beyond AdamW", lambda entry: f"{entry['beyond_adamw']:+.3f}"),
        ("extra in a step", lambda entry: size(entry["step_extra_bytes"])),
        (
            "extra in a grouping",
            lambda entry: _NONE if entry["grouping_extra_bytes"] is None else size(entry["grouping_extra_bytes"]),
        ),
    ]


def _table(entries: Sequence[Mapping[str, Any]], columns: Sequence[_Column]) -> str:
    rows = [[entry["optimizer"], *(cell(entry) for _, cell in columns)] for entry in entries]
    return format_table(["optimizer", *(title for title, _ in columns)], rows, left=1)


def _machine(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    load = "" if machine["load"] is None else f", load {machine['load']}"
    return f"{where}{load}, torch {machine['torch']}, {report['method']['dtype']}, {machine['date']}"


def _workload(one: Mapping[str, Any]) -> str:
    return f"{one['shapes']}: {one['tensors']} tensors, {one['parameters'] / 1e6:.2f}M parameters"


def _skipped(report: Mapping[str, Any]) -> list[str]:
    return [f"skipped: {reason}" for reason in report["skipped"]]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"


def _spread(value: Mapping[str, float]) -> str:
    digits = 2 if value["median"] < 10 else 1
    return f"{value['median']:.{digits}f} ({value['q1']:.{digits}f} to {value['q3']:.{digits}f})"
