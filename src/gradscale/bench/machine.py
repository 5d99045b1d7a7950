"""What the numbers were measured on, and how much memory there is."""

from __future__ import annotations

import datetime
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_CGROUP = Path("/sys/fs/cgroup")


def describe(device: torch.device) -> dict[str, Any]:
    """Return machine, versions and date; `load` is the number of busy cores over the last minute, ours included."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gradscale": metadata.version("gradscale"),
    }


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be taken on the device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [_bytes(_field(Path("/proc/meminfo"), "MemAvailable")), _left_in_container()]
    return min((number for number in known if number is not None), default=None)


def peak_bytes(device: torch.device) -> int | None:
    """Return the most memory that this process has held so far; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _bytes(_field(Path("/proc/self/status"), "VmHWM"))


def _left_in_container() -> int | None:
    limit, used = (_text(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None or not limit.strip().isdigit():
        return None
    # Of what counts as used, the kernel gives files that it has cached back when asked.
    cached = re.search(r"^inactive_file (\d+)$", _text(_CGROUP / "memory.stat") or "", re.MULTILINE)
    return int(limit) - int(used) + (int(cached.group(1)) if cached else 0)


def _field(path: Path, name: str) -> str | None:
    found = re.search(rf"^{name}\s*:\s*(.*)$", _text(path) or "", re.MULTILINE)
    return found.group(1).strip() if found else None


def _bytes(text: str | None) -> int | None:
    return int(text.split()[0]) * 1024 if text else None


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None
