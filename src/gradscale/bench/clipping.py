"""`gradscale bench clipping`: clipping rules side by side, on scripted traces and on a small model."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from gradscale.bench import bad_batches, clip_traces
from gradscale.bench.peers.clipping import clip_rules
from gradscale.training.summary import format_table


def measure(
    *, seeds: int, trace_steps: int, noise: float, train_steps: int, rates: Sequence[float], bad: float
) -> dict[str, Any]:
    """Return traces' numbers, final losses and costs for every rule. `train_steps` 0: no training."""
    results = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ALSDGC")
        for name, (make, source) in clip_rules().items():
            entry: dict[str, Any] = {"rule": name, "source": source}
            entry |= clip_traces.summarize(make, seeds, trace_steps, noise)
            entry["seconds_per_step"] = _cost(make)
            entry["losses"] = {
                f"{rate:g}": [
                    bad_batches.train(make, seed=seed, lr=rate, steps=train_steps, bad=bad) for seed in range(seeds)
                ]
                for rate in (rates if train_steps else ())
            }
            results.append(entry)
    return {"results": results}


def _cost(make: Any) -> float:
    made = clip_traces.trace("clean", 0, 1000, 0.15)
    rule = make()
    seconds = []
    for first in range(0, 1000, 200):
        start = time.perf_counter()
        for step in range(first, first + 200):
            rule(made.norms[step], made.losses[step])
        seconds.append((time.perf_counter() - start) / 200)
    # The first block is warm-up; of the others the fastest, since whatever else runs only ever adds.
    return min(seconds[1:])


def text(report: Mapping[str, Any]) -> str:
    """Return the tables."""
    results = report["results"]
    rows = [
        [
            entry["rule"],
            _percent(entry["clean_clipped"]),
            _percent(entry["drift_clipped"]),
            _times(entry["spike_over_median"]),
            _times(entry["bad_over_median"]),
            "never" if entry["recovery_steps"] is None else str(entry["recovery_steps"]),
            str(entry["nan_steps_applied"]),
            str(entry["good_steps_skipped_after_nan"]),
            f"{1e3 * entry['seconds_per_step']:.3f} ms",
            entry["source"],
        ]
        for entry in results
    ]
    titles = ["rule", "clipped: clean", "drift", "applied: spike", "bad batch", "x4: steps", "NaN steps", "skips after"]
    tables = [format_table([*titles, "cost", "from"], rows, left=1)]
    rates = list(results[0]["losses"])
    if rates:
        rows = [[entry["rule"], *(_losses(entry["losses"][rate]) for rate in rates)] for entry in results]
        tables.append("validation loss, nats per byte: mean over seeds (worst)")
        tables.append(format_table(["rule", *(f"lr {rate}" for rate in rates)], rows, left=1))
    return "\n\n".join([*tables, _LEGEND])


_LEGEND = """\
clipped: steps scaled down on a clean trace and on one that grows e^3 in 2000 steps. applied: largest norm that reached
the optimizer on a step of 50 times the norm (with an extreme loss too: bad batch), over the usual norm; 0: all skipped.
x4: steps until a lasting shift is no longer clipped. NaN steps: steps that would have put NaN into the weights after
one NaN or infinity. skips after: good steps left out because of it."""


def draw(report: Mapping[str, Any], path: Any) -> None:
    """Draw final losses, or without training the clipped shares, as bars."""
    from matplotlib.figure import Figure

    results = report["results"]
    rates = list(results[0]["losses"])
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    names = [entry["rule"] for entry in results]
    if not rates:
        axes.barh(names, [100 * entry["clean_clipped"] for entry in results], color="#0072B2")
        axes.set_xlabel("steps clipped on a clean trace (%)")
    for index, rate in enumerate(rates):
        means = [statistics.fmean(entry["losses"][rate]) for entry in results]
        places = [place + 0.4 * index - 0.2 * (len(rates) - 1) for place in range(len(names))]
        shown = [mean if math.isfinite(mean) else 0.0 for mean in means]
        bars = axes.barh(places, shown, 0.38, color=("#0072B2", "#D55E00")[index % 2], label=f"lr {rate}")
        axes.bar_label(bars, [f"{mean:.3f}" for mean in means], fontsize=7, padding=2)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("validation loss (nats per byte) with bad batches")
        axes.legend(frameon=False, fontsize=8)
    axes.invert_yaxis()
    figure.savefig(path, dpi=150)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _times(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "NaN"


def _losses(losses: Sequence[float]) -> str:
    return f"{statistics.fmean(losses):.3f} ({max(losses):.3f})" if all(map(math.isfinite, losses)) else "NaN"
