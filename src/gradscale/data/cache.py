"""The cache folder, and how results come into it: whole or not at all, whoever else is writing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_root() -> Path:
    """Return `$XDG_CACHE_HOME/gradscale`, or `~/.cache/gradscale`."""
    # The XDG specification: a relative path is invalid and to be ignored.
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "gradscale"


def cached_folder(kind: str, key: str, build: Callable[[Path], None], *, root: Path | None = None) -> Path:
    """Return the folder of `key`, built by `build(folder)` if it is not there.

    The folder is built under a temporary name and renamed, so that a reader never sees half a folder and concurrent
    builders do not disturb each other: the first to finish wins, and the others use its result.

    Args:
        kind: what is cached; a folder of the cache.
        key: hex digest of everything that the result depends on.
        build: writes the result into the empty folder that it is given.
        root: cache folder instead of `cache_root()`.
    """
    parent = (root if root is not None else cache_root()) / kind
    final = parent / key[:32]
    if final.is_dir():
        return final
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=parent))
    try:
        build(temporary)
        try:
            temporary.rename(final)
        except OSError:
            # A rename onto a non-empty folder fails: someone else finished first.
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final
