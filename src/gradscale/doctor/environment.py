"""Versions, and whether transformers knows the optimizers here."""

from __future__ import annotations

import importlib
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any

from gradscale.doctor.findings import Findings
from gradscale.integrations.registration import failures
from gradscale.registry import REGISTRY

# What the full test suite runs with; see constraints.txt.
TESTED: Mapping[str, str] = MappingProxyType(
    {
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "accelerate": "1.15.0",
        "deepspeed": "0.19.8",
        "peft": "0.21.2",
        "trl": "1.16.0",
        "bitsandbytes": "0.50.2",
    }
)
TESTED_PYTHONS = "3.10 to 3.13"
_PATCHED = ("transformers.training_args", "transformers.trainer", "accelerate.accelerator")
_OFF = {"0", "false", "off", "no"}


def versions(findings: Findings) -> dict[str, dict[str, str | None]]:
    """Return what is installed and what was tested, by name; None for what is not installed or has no one version."""
    found: dict[str, dict[str, str | None]] = {
        "gradscale": {"found": _version("gradscale"), "tested": None},
        "python": {"found": platform.python_version(), "tested": TESTED_PYTHONS},
    }
    for name, tested in TESTED.items():
        version = _version(name)
        found[name] = {"found": version, "tested": tested}
        least = _least(name)
        if version is not None and least is not None and _numbers(version) < _numbers(least):
            findings.not_supported.append(f"{name} {version} is too old: gradscale needs {least} or newer")
    cuda, gpus = _gpus()
    found["CUDA"] = {"found": cuda, "tested": None}
    found["GPUs"] = {"found": gpus, "tested": None}
    return found


def registration(findings: Findings) -> dict[str, Any]:
    """Return the names of `--optim`, whether transformers has them, and whether it would without a launcher."""
    if _version("transformers") is None:
        findings.watch_out.append("transformers is not installed: there is no --optim to choose an optimizer by")
        return {"optim": dict.fromkeys(REGISTRY, False), "failures": {}, "autoload": _autoload()}
    broken: dict[str, str] = {}
    for module in _PATCHED:
        try:
            importlib.import_module(module)
        except ImportError as error:
            broken[module] = f"not importable: {error}"
    broken |= {module: f"{type(error).__name__}: {error}" for module, error in failures().items()}
    known = _known_names()
    for module, reason in broken.items():
        if module.startswith("transformers.") or _version("accelerate") is not None:
            findings.not_supported.append(f"{module} could not be extended: {reason}")
    missing = [name for name in REGISTRY if name not in known]
    if missing and not broken:
        findings.not_supported.append(f"transformers does not know {', '.join(missing)}")
    autoload = _autoload()
    if autoload != "on":
        findings.watch_out.append(
            f"automatic registration is off ({autoload}): start scripts with `gradscale run` or `-m gradscale.run`, or "
            "import gradscale in them"
        )
    return {"optim": {name: name in known for name in REGISTRY}, "failures": broken, "autoload": autoload}


def _known_names() -> set[str]:
    try:
        arguments = importlib.import_module("transformers.training_args")
    except ImportError:
        return set()
    return {name.value for name in arguments.OptimizerNames}


def _autoload() -> str:
    for variable in ("GRADSCALE_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD"):
        value = os.environ.get(variable, "1")
        if value.strip().lower() in _OFF:
            return f"{variable}={value}"
    if not any(entry.name == "gradscale" for entry in metadata.entry_points(group="torch.backends")):
        return "gradscale is not installed, only importable"
    failure = getattr(importlib.import_module("gradscale_autoload"), "failure", None)
    return "on" if failure is None else f"it failed: {failure}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _least(name: str) -> str | None:
    """The oldest version that gradscale's own metadata allows."""
    try:
        requirements = metadata.requires("gradscale") or []
    except metadata.PackageNotFoundError:
        return None
    found = [re.match(rf"{name}\s*\(?>=\s*([\d.]+)", requirement) for requirement in requirements]
    return next((match.group(1) for match in found if match), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def _gpus() -> tuple[str | None, str | None]:
    import torch

    if not torch.cuda.is_available():
        return torch.version.cuda, None
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return torch.version.cuda, ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
