"""`gradscale bench loss-scale`: loss-scale rules along a ceiling of float16 that moves, with bad batches."""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Mapping
from typing import Any

from gradscale.bench.peers.scaling import FLOORS, SCALE_RULES
from gradscale.training.summary import format_table


def ceiling(step: int, steps: int) -> float:
    """Return the largest scale at which gradients are finite, in bits: 14.5, then 11.5, then 13.5."""
    third = 3 * step // steps
    return (14.5, 11.5, 13.5)[third]


def simulate(name: str, *, seed: int, steps: int, bad_loss: float) -> dict[str, Any]:
    """Return what a rule loses. A bad batch has a NaN loss, and NaN gradients at any scale.

    `lost` counts steps lost to overflow at the scale, without the bad batches, which every rule loses.
    """
    rng = random.Random(seed)
    rule = SCALE_RULES[name]()
    lost = bad = floor_hits = ended = 0
    bits, below = [], []
    for step in range(steps):
        top = ceiling(step, steps)
        is_bad = rng.random() < bad_loss
        overflow = rule.scale > 2.0**top
        before = rule.scale
        ended += rule.update(is_bad or overflow, math.nan if is_bad else 2.0)
        bad += is_bad
        lost += overflow and not is_bad
        floor_hits += (is_bad or overflow) and before > FLOORS.get(name, 0.0) >= rule.scale
        bits.append(math.log2(rule.scale) if rule.scale > 0 else -math.inf)
        below.append(top - bits[-1])
    every = max(1, steps // 400)
    return {
        "lost": lost / steps,
        "bad": bad / steps,
        "final_bits": bits[-1],
        "final_below": below[-1],
        "floor_hits": floor_hits,
        "ended": ended,
        "trace": bits[::every],
    }


def measure(*, seeds: int, steps: int, bad_loss: float) -> dict[str, Any]:
    """Return the numbers of every rule: shares are means over seeds, the rest is of the worst seed."""
    results = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ALSDGC")
        for name in SCALE_RULES:
            runs = [simulate(name, seed=seed, steps=steps, bad_loss=bad_loss) for seed in range(seeds)]
            worst = max(runs, key=lambda run: abs(run["final_below"]))
            results.append(
                {
                    "rule": name,
                    "lost": statistics.fmean(run["lost"] for run in runs),
                    "bad": statistics.fmean(run["bad"] for run in runs),
                    "final_bits": worst["final_bits"],
                    "final_below": worst["final_below"],
                    "floor_hits": max(run["floor_hits"] for run in runs),
                    "ended": max(run["ended"] for run in runs),
                    "trace": runs[0]["trace"],
                }
            )
    return {"results": results}


def text(report: Mapping[str, Any]) -> str:
    """Return the table."""
    rows = [
        [
            entry["rule"],
            f"{100 * entry['lost']:.2f} %",
            f"{100 * (entry['lost'] + entry['bad']):.2f} %",
            f"2^{entry['final_bits']:.0f}",
            f"{entry['final_below']:.1f}",
            str(entry["floor_hits"]),
            str(entry["ended"]),
        ]
        for entry in report["results"]
    ]
    titles = ["rule", "lost to overflow", "with bad batches", "final scale", "bits below", "floor hits", "run ended"]
    return "\n\n".join([format_table(titles, rows, left=1), _LEGEND])


_LEGEND = """\
lost to overflow: steps at whose scale good gradients overflow. bits below: the ceiling at the end (the worst seed).
floor hits: how often the scale fell onto its floor of 1 (torch's has none). run ended: how often DeepSpeed would have
raised an error."""


def draw(report: Mapping[str, Any], path: Any) -> None:
    """Draw the scales of the first seed over the run, with the ceiling."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for entry in report["results"]:
        axes.plot([max(bits, -20) for bits in entry["trace"]], label=entry["rule"], linewidth=1.2)
    number = len(report["results"][0]["trace"])
    axes.plot([ceiling(step, number) for step in range(number)], "k--", linewidth=1, label="ceiling")
    axes.set_xlabel("share of the run")
    axes.set_xticks([0, number - 1], ["0", "1"])
    axes.set_ylabel("loss scale (bits)")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
