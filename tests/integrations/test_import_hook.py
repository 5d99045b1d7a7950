"""The import hook: an action must run after the import, whatever state the module is in, and never twice or too early.

unittest and the standard library only: `test_other_pythons.py` runs this file under every Python it finds.
"""

import importlib
import importlib.util
import itertools
import sys
import tempfile
import textwrap
import threading
import time
import unittest
import zipfile
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path

from gradscale.integrations.import_hook import when_imported

_serial = itertools.count()


class ImportHookTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        sys.path.insert(0, folder.name)
        self.addCleanup(sys.path.remove, folder.name)
        before = set(sys.modules)
        self.addCleanup(lambda: [sys.modules.pop(name) for name in set(sys.modules) - before])
        self.ran = []

    def write(self, body, name=None):
        name = name or f"hooked_{next(_serial)}"
        path = self.folder / (name.replace(".", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(body))
        importlib.invalidate_caches()
        return name

    def record(self, module):
        self.ran.append(getattr(module, "value", "half"))
        module.seen = True

    def test_not_yet_imported(self):
        name = self.write("value = 1")
        when_imported(name, self.record)
        self.assertEqual(self.ran, [])
        module = importlib.import_module(name)
        importlib.import_module(name)
        self.assertEqual(self.ran, [1])
        self.assertTrue(module.seen)

    def test_loader_and_spec_keep_their_types(self):
        name = self.write("value = 1")
        when_imported(name, self.record)
        module = importlib.import_module(name)
        self.assertIs(type(module.__spec__), ModuleSpec)
        self.assertIs(type(module.__spec__.loader), SourceFileLoader)
        self.assertNotIn("exec_module", vars(module.__spec__.loader))

    def test_submodule_of_a_package(self):
        self.write("", "pack_a.__init__")
        name = self.write("value = 1", "pack_a.part")
        when_imported(name, self.record)
        importlib.import_module("pack_a")
        self.assertEqual(self.ran, [])
        importlib.import_module(name)
        self.assertEqual(self.ran, [1])

    def test_already_imported(self):
        name = self.write("value = 1")
        importlib.import_module(name)
        when_imported(name, self.record)
        self.assertEqual(self.ran, [1])

    def test_same_action_twice_runs_once(self):
        name = self.write("value = 1")
        when_imported(name, self.record)
        when_imported(name, self.record)
        importlib.import_module(name)
        when_imported(name, self.record)
        self.assertEqual(self.ran, [1])

    def test_several_actions(self):
        name = self.write("value = 1")
        order = []
        when_imported(name, lambda module: order.append("a"))
        when_imported(name, lambda module: order.append("b"))
        importlib.import_module(name)
        self.assertEqual(order, ["a", "b"])

    def half_imported(self, tail):
        """A module whose import leads to the registration of the action, as `import torch` does."""
        trigger = self.write("import builtins; builtins._trigger()")
        name = self.write(f"import {trigger}\nvalue = 1\n{tail}")
        import builtins

        builtins._trigger = lambda: when_imported(name, self.record)
        self.addCleanup(delattr, builtins, "_trigger")
        return name

    def test_half_imported(self):
        name = self.half_imported("early = 'seen' in globals()")
        module = importlib.import_module(name)
        self.assertEqual(self.ran, [1])
        self.assertFalse(module.early)
        self.assertIs(type(module.__spec__), ModuleSpec)
        self.assertIs(module.__spec__._initializing, False)
        self.assertNotIn("_gradscale_waiting", vars(module.__spec__))

    def test_half_imported_then_reloaded(self):
        name = self.half_imported("")
        importlib.reload(importlib.import_module(name))
        self.assertEqual(self.ran, [1, 1])

    def test_half_imported_and_failing(self):
        name = self.half_imported("raise KeyError('broken')")
        with self.assertRaises(KeyError):
            importlib.import_module(name)
        self.assertEqual(self.ran, [])
        self.assertNotIn(name, sys.modules)
        self.write("value = 2 # repaired", name)
        importlib.import_module(name)
        self.assertEqual(self.ran, [2])

    def test_import_error_in_the_module(self):
        name = self.write("import does_not_exist_anywhere")
        when_imported(name, self.record)
        with self.assertRaises(ModuleNotFoundError):
            importlib.import_module(name)
        self.assertEqual(self.ran, [])
        self.write("value = 22222", name)
        importlib.import_module(name)
        self.assertEqual(self.ran, [22222])

    def test_missing_module_is_missing_as_ever(self):
        when_imported("hooked_missing", self.record)
        with self.assertRaises(ModuleNotFoundError):
            importlib.import_module("hooked_missing")
        self.assertIsNone(importlib.util.find_spec("hooked_missing"))

    def test_looking_for_a_spec_runs_nothing(self):
        name = self.write("value = 1")
        when_imported(name, self.record)
        self.assertEqual(importlib.util.find_spec(name).name, name)
        self.assertEqual(self.ran, [])

    def test_reload(self):
        name = self.write("value = 1")
        when_imported(name, self.record)
        module = importlib.import_module(name)
        self.write("value = 22", name)
        importlib.reload(module)
        self.assertEqual(self.ran, [1, 22])

    def test_module_that_replaces_itself(self):
        name = self.write(
            "import sys, types; new = types.ModuleType(__name__); new.value = 7; sys.modules[__name__] = new"
        )
        when_imported(name, self.record)
        self.assertTrue(importlib.import_module(name).seen)
        self.assertEqual(self.ran, [7])

    def test_zipped_modules_share_a_loader(self):
        archive = self.folder / "modules.zip"
        first, second = f"zipped_{next(_serial)}", f"zipped_{next(_serial)}"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(f"{first}.py", f"import {second}\nvalue = 1")
            file.writestr(f"{second}.py", "value = 2")
        sys.path.insert(0, str(archive))
        self.addCleanup(sys.path.remove, str(archive))
        when_imported(first, self.record)
        when_imported(second, self.record)
        importlib.import_module(first)
        self.assertEqual(self.ran, [2, 1])

    def test_loader_that_cannot_be_shadowed(self):
        record, name = self.record, f"slotted_{next(_serial)}"

        class Loader:
            __slots__ = ()

            def create_module(self, spec):
                return None

            def exec_module(self, module):
                module.value = 5

        class Finder:
            @staticmethod
            def find_spec(fullname, path, target=None):
                return ModuleSpec(fullname, Loader()) if fullname == name else None

        sys.meta_path.append(Finder)
        self.addCleanup(sys.meta_path.remove, Finder)
        when_imported(name, record)
        importlib.import_module(name)
        self.assertEqual(self.ran, [5])

    def test_beside_another_delegating_finder(self):
        name = self.write("value = 1")

        class Delegating:
            busy = False

            @classmethod
            def find_spec(cls, fullname, path, target=None):
                if fullname != name or cls.busy:
                    return None
                cls.busy = True
                try:
                    return importlib.util.find_spec(fullname)
                finally:
                    cls.busy = False

        when_imported(name, self.record)
        for position in (0, len(sys.meta_path)):
            sys.meta_path.insert(position, Delegating)
            try:
                importlib.import_module(name)
            finally:
                sys.meta_path.remove(Delegating)
                sys.modules.pop(name)
        self.assertEqual(self.ran, [1, 1])

    def test_threads_wait_for_the_action(self):
        name = self.write("import time; time.sleep(0.1); value = 1")

        def slow(module):
            time.sleep(0.1)
            self.record(module)

        when_imported(name, slow)
        saw = []
        threads = [threading.Thread(target=lambda: saw.append(importlib.import_module(name).seen)) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.assertEqual((saw, self.ran), ([True] * 4, [1]))

    def test_half_imported_by_another_thread(self):
        name = self.write("import time; time.sleep(0.3); value = 1")
        thread = threading.Thread(target=importlib.import_module, args=(name,))
        thread.start()
        while name not in sys.modules:
            time.sleep(0.005)
        when_imported(name, self.record)
        self.assertEqual(self.ran, [])
        self.assertTrue(importlib.import_module(name).seen)  # waits for the other thread, action included
        thread.join()
        self.assertEqual(self.ran, [1])


if __name__ == "__main__":
    unittest.main()
