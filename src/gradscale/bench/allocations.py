"""The most memory that a piece of code holds beside what was there before it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return the bytes allocated on the device at the worst moment of `run`, less those allocated when it begins."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _on_cpu(run)


def _on_cpu(run: Callable[[], object]) -> int:
    """Read it from the log of the CPU allocator, which sees also what operators and compiled code hold inside.

    What was allocated before and is freed meanwhile is not subtracted; what is not a tensor is not seen.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    log = [event for event in events if event["name"] == "[memory]" and event["args"].get("Device Type") == 0]
    if not log:
        return 0
    first = min(log, key=lambda event: float(event["ts"]))["args"]
    begin = int(first["Total Allocated"]) - int(first["Bytes"])
    return max(0, max(int(event["args"]["Total Allocated"]) for event in log) - begin)
