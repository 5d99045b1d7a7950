"""Run an action once a module has been imported, whenever that is. Standard library only.

A module can be in one of three states when an action is registered: not imported (a `sys.meta_path` finder waits for
it), imported (the action runs at once), or half imported: it, or something it imports, is what led here. That last
state is the normal one behind `import torch`, which `transformers.training_args` itself may be the first to do.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], object]

_lock = threading.RLock()


def when_imported(name: str, action: Action) -> None:
    """Run `action(module)` after every import or reload of module `name`; at once if it is imported already.

    Registering the same action twice changes nothing. An action runs inside the import that it waited for, so it must
    not raise.

    Args:
        name: fully qualified module name.
        action: called with the module. It may run again for a reloaded module.
    """
    with _lock:
        actions = _FINDER.actions.setdefault(name, [])
        if action in actions:
            return
        actions.append(action)
        # First in line: the other finders still find the module, this one only adds to what they found.
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
        module = sys.modules.get(name)
    if module is None:
        return
    if _is_initializing(module):
        _after_current_import(module, action)
    else:
        action(module)


class _Finder(MetaPathFinder):
    """Lets the other finders find a watched module and arranges for the actions to run after its execution."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}
        self._searching = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the other finders' spec of a watched module; None for any other module."""
        if fullname not in self.actions:
            return None
        searching: set[str] = self._searching.__dict__.setdefault("names", set())
        if fullname in searching:  # another finder of this sort asks everyone, us included
            return None
        searching.add(fullname)
        try:
            spec = self._ask_others(fullname, path, target)
        finally:
            searching.discard(fullname)
        if spec is not None and spec.loader is not None:
            _run_after_exec(spec, lambda module: self._run(fullname, module))
        return spec

    def _ask_others(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec: ModuleSpec | None = find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None

    def _run(self, fullname: str, module: ModuleType) -> None:
        for action in list(self.actions.get(fullname, ())):
            action(module)


_FINDER = _Finder()


def _run_after_exec(spec: ModuleSpec, action: Action) -> None:
    """Make the loader of `spec` run `action` after it has executed the module, once.

    The loader keeps its type (tools look at it: `inspect`, `zipimport`, debuggers); only this instance's `exec_module`
    is shadowed, until its first use.
    """
    loader: Any = spec.loader
    original = getattr(loader, "exec_module", None)
    if original is None or isinstance(loader, type) or not hasattr(loader, "__dict__"):
        # A legacy, class-level or slotted loader cannot be shadowed; the end of its import can still be observed.
        _Watch.attach(spec, action)
        return

    def exec_module(module: ModuleType) -> None:
        if module.__name__ == spec.name:  # a loader may serve several modules
            loader.__dict__.pop("exec_module", None)
        original(module)
        if module.__name__ == spec.name:
            # What import returns is what stands in sys.modules: a module may replace itself.
            action(sys.modules.get(spec.name, module))

    loader.__dict__["exec_module"] = exec_module


def _is_initializing(module: ModuleType) -> bool:
    # importlib's own mark: True from before the module enters sys.modules until its import ended, well or not.
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _after_current_import(module: ModuleType, action: Action) -> None:
    """Run `action` when the import of `module` that is under way has succeeded."""
    spec = module.__spec__
    assert spec is not None  # it carries the mark that led here
    _Watch.attach(spec, action)


class _Watch(ModuleSpec):
    """A spec that notices the end of its module's import.

    The import system ends every import by setting `spec._initializing = False`. Changing the class of the living spec
    keeps its identity and content; the value itself stays in the instance's `__dict__`, so that changing the class
    back restores the spec exactly.
    """

    @classmethod
    def attach(cls, spec: ModuleSpec, action: Action) -> None:
        """Run `action` when the import that `spec` describes has succeeded."""
        fields = spec.__dict__
        with _lock:
            fields.setdefault("_gradscale_waiting", []).append(action)
            spec.__class__ = cls
        # The other thread that imports the module may have ended between the caller's look and the line above.
        module = sys.modules.get(spec.name)
        if module is not None and module.__spec__ is spec and fields.get("_initializing") is False:
            cls._finish(spec)

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__.get("_initializing", False))

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        if not value:
            # Before the mark is cleared: other threads that import the module wait until it is.
            self._finish(self)
        self.__dict__["_initializing"] = value

    @staticmethod
    def _finish(spec: ModuleSpec) -> None:
        with _lock:
            waiting = spec.__dict__.pop("_gradscale_waiting", [])
            spec.__class__ = ModuleSpec
        # importlib removes a module whose import failed from sys.modules before it clears the mark.
        module = sys.modules.get(spec.name)
        if module is None:
            return
        for action in waiting:
            action(module)
