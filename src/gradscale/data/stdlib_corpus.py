"""The embedded corpus: the Python standard library's own text, on every machine without a download.

One document per source file (docstrings and comments with the code around them) and one per help topic of
`pydoc_data.topics`. The split is by file, so validation text never stands in training. The library differs between
Python releases and distributions: perplexities compare within one installation, named by the fingerprint.
"""

from __future__ import annotations

import importlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from gradscale.data.source import DataError, Split, digest, is_held_out

HELD_OUT = 0.05
TOPICS = "pydoc_data/topics.py"

# Test suites and bundled tools are not installed everywhere, `encodings` is tables of characters, and installed
# packages are not the standard library.
_SKIPPED_FOLDERS = frozenset(
    "__pycache__ dist-packages encodings ensurepip idlelib lib2to3 site-packages test tests turtledemo".split()
)


class StdlibCorpus:
    """The standard library as a source of documents.

    Args:
        root: folder that is read instead of the running Python's standard library.

    Raises:
        DataError: this Python has no library sources (an embedded or zipped installation).
    """

    description = "the Python standard library"

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root if root is not None else sysconfig.get_paths()["stdlib"])
        if not self.files["train"] or not self.files["validation"]:
            raise DataError(
                f"{self.root} holds too few Python sources for the corpus 'stdlib'; use train_files or dataset_name"
            )

    @cached_property
    def files(self) -> dict[Split, dict[str, str]]:
        """Relative path to text, for each split. Of files with equal contents only the first by path is kept."""
        splits: dict[Split, dict[str, str]] = {"train": {}, "validation": {}}
        seen: set[str] = set()
        for path in self._paths():
            text = _read_source(self.root / path)
            # A copy under another name could otherwise put the same text on both sides of the split.
            content = digest("" if text is None else text.strip())
            if text is None or not text.strip() or content in seen:
                continue
            seen.add(content)
            splits["validation" if is_held_out(path, HELD_OUT) else "train"][path] = text
        # Sorted by hash, so that a limit on the number of tokens keeps a sample of the whole library.
        return {split: dict(sorted(texts.items(), key=lambda item: digest(item[0]))) for split, texts in splits.items()}

    @cached_property
    def fingerprint(self) -> str:  # noqa: D102
        parts = [part for split in ("train", "validation") for item in self.files[split].items() for part in item]
        return digest("stdlib", *parts)

    def documents(self, split: Split) -> Iterator[str]:  # noqa: D102
        for path, text in self.files[split].items():
            if path == TOPICS:
                yield from _topics(text)
            else:
                yield text

    def _paths(self) -> list[str]:
        paths = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
            relative = Path(folder).relative_to(self.root)
            paths += [(relative / name).as_posix() for name in names if name.endswith(".py")]
        return sorted(path for path in paths if not path.startswith("_sysconfigdata"))


def _read_source(path: Path) -> str | None:
    """Return a source's text in the encoding that it declares, or None where it cannot be read."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def _topics(source: str) -> Iterator[str]:
    """Yield the help topics as text: their source writes every line as an escaped string."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        yield source
        return
    yield from (topics[name] for name in sorted(topics))
