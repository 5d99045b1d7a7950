"""The second embedded corpus: what installed libraries say of themselves, on every machine that can train.

English prose with some code and mathematics in it: the docstrings of torch, transformers and numpy, one document per
source file. Where the standard library is programs, this is mostly sentences, so that a result on one is put to the
test on the other. Files are held out as a whole. Libraries repeat themselves (models are made of each other), so of
equal paragraphs only the first is kept, whichever split it is in. As with the standard library, perplexities compare
within one installation, named by the fingerprint.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from gradscale.data.source import DataError, Split, digest, is_held_out

HELD_OUT = 0.05
PACKAGES = ("torch", "transformers", "numpy")
SHORTEST = 200  # characters of a docstring: shorter ones are labels rather than text
_VERSION = "1"  # of what is taken out of a file
_SKIPPED_FOLDERS = frozenset({"__pycache__", "include", "test", "tests", "testing", "_vendor"})
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class DocstringsCorpus:
    """Docstrings of installed packages as a source of documents.

    Args:
        roots: folders of packages by name, instead of those that are installed.

    Raises:
        DataError: there is no source of any of them.
    """

    def __init__(self, roots: Mapping[str, str | Path] | None = None) -> None:
        self.roots = installed() if roots is None else {name: Path(root) for name, root in roots.items()}
        if not self._paths:
            raise DataError(
                f"the corpus 'docstrings' needs the sources of {', '.join(PACKAGES)}, and none is installed; use "
                "train_files or dataset_name"
            )

    @property
    def description(self) -> str:  # noqa: D102
        return f"the docstrings of {', '.join(self.roots)}"

    @cached_property
    def fingerprint(self) -> str:  # noqa: D102
        # Sizes, not contents: installed packages do not change but for another version, and are a hundred megabytes.
        sizes = [part for key, path in self._paths.items() for part in (key, str(path.stat().st_size))]
        return digest("docstrings", _VERSION, *sizes)

    def documents(self, split: Split) -> Iterator[str]:  # noqa: D102
        yield from self._documents[split]

    @cached_property
    def _documents(self) -> dict[Split, list[str]]:
        """Both splits: which paragraphs are the first of their kind is known when all have been read."""
        splits: dict[Split, list[str]] = {"train": [], "validation": []}
        seen: set[str] = set()
        for key, path in self._paths.items():
            kept = []
            for text in _docstrings(path):
                for paragraph in text.split("\n\n"):
                    content = digest(" ".join(paragraph.split()))
                    if content not in seen and paragraph.strip():
                        seen.add(content)
                        kept.append(paragraph.rstrip())
            if kept:
                splits["validation" if is_held_out(key, HELD_OUT) else "train"].append("\n\n".join(kept))
        return splits

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """Files by name, in the order of its hash, so that a limit on tokens keeps a sample of all."""
        found = {}
        for name, root in self.roots.items():
            for folder, folders, names in os.walk(root):
                folders[:] = [one for one in folders if one not in _SKIPPED_FOLDERS]
                for file in names:
                    if file.endswith(".py"):
                        path = Path(folder, file)
                        found[f"{name}/{path.relative_to(root).as_posix()}"] = path
        return dict(sorted(found.items(), key=lambda item: digest(item[0])))


def installed() -> dict[str, Path]:
    """Return the folders of those packages that are installed; none of them is imported."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    return {
        name: Path(spec.submodule_search_locations[0])
        for name, spec in specs.items()
        if spec is not None and spec.submodule_search_locations
    }


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            waiting: list[_Documented] = [ast.parse(file.read())]
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return  # a template, or of another version of Python
    while waiting:
        node = waiting.pop(0)
        text = ast.get_docstring(node, clean=False)
        if text is not None and len(text) >= SHORTEST:
            yield inspect.cleandoc(text)
        waiting += [one for one in node.body if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
