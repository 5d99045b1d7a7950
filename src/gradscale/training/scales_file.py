"""Reading `scales.jsonl`, without the libraries that writing it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_scales(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `scales.jsonl`; a last line that a killed run left half-written is dropped."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows
