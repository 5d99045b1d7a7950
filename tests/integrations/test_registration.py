"""Registration against a stand-in for transformers: the doors, their order, and a transformers that looks different.

unittest and the standard library only: `test_other_pythons.py` runs this file under every Python it finds. Every case
is a fresh process, since the state of sys.modules is what is tested.
"""

import os
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

TRAINING_ARGS = """
    import torch  # the first import of torch may come from here
    from dataclasses import dataclass
    from enum import Enum

    class OptimizerNames(str, Enum):
        SGD = "sgd"

    @dataclass
    class TrainingArguments:
        optim: str = "sgd"
        optim_args: object = None
        optim_target_modules: object = None
        learning_rate: float = 1e-3
        weight_decay: float = 0.0
        adam_beta1: float = 0.9
        adam_beta2: float = 0.999
        adam_epsilon: float = 1e-8
        max_steps: int = -1

        def __post_init__(self):
            self.optim = OptimizerNames(self.optim)
"""
TRAINER = """
    from .training_args import TrainingArguments

    class Handler:
        def __init__(self):
            self.callbacks = ["tracker"]

    class Trainer:
        def __init__(self, args=None):
            self.callback_handler = Handler()

        @staticmethod
        def get_optimizer_cls_and_kwargs(args, model=None):
            return "original", {"optim": args.optim, "model": model}
"""
# torch calls its backends' entry points at the end of its import.
TORCH = "import gradscale_autoload; gradscale_autoload.autoload()"
USE = """
    from transformers.training_args import OptimizerNames, TrainingArguments
    from transformers.trainer import Trainer
    args = TrainingArguments(optim="sgg_adamw", optim_args="n_clusters=2", max_steps=7)
    assert args.optim is OptimizerNames.SGG_ADAMW
    trainer = Trainer(args)
    assert type(trainer.callback_handler.callbacks[0]).__name__ == "ScaleCallback"
    original = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(), "m")
    assert original == ("original", {"optim": "sgd", "model": "m"})
    print("registered")
"""
UNKNOWN = """
    import warnings
    warnings.simplefilter("error")
    from transformers.training_args import OptimizerNames
    print([name.value for name in OptimizerNames])
"""


class RegistrationTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.write("transformers/__init__.py", "__version__ = '9.9'")
        self.write("transformers/training_args.py", TRAINING_ARGS)
        self.write("transformers/trainer.py", TRAINER)
        self.write("transformers/trainer_callback.py", "class TrainerCallback: pass")
        self.write("torch.py", TORCH)

    def write(self, path, text):
        target = self.folder / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(textwrap.dedent(text))

    def python(self, *parts, **environment):
        code = "\n".join(textwrap.dedent(part) for part in parts)
        paths = [self.folder, *(entry for entry in sys.path if entry)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **environment}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.stderr = done.stderr
        return done.stdout.strip()

    def test_import_gradscale_before(self):
        self.assertEqual(self.python("import gradscale", USE, GRADSCALE_AUTOLOAD="0"), "registered")
        self.assertEqual(self.stderr, "")

    def test_import_gradscale_after(self):
        out = self.python("import transformers.trainer, gradscale", USE, GRADSCALE_AUTOLOAD="0")
        self.assertEqual(out, "registered")

    def test_no_door_but_torch(self):
        self.assertEqual(self.python(USE), "registered")
        self.assertEqual(self.python("import torch", USE), "registered")
        self.assertEqual(self.python("import transformers.trainer_callback, torch", USE), "registered")

    def test_all_doors_and_reload(self):
        out = self.python(
            """
            import gradscale, torch, gradscale_autoload, importlib, transformers.training_args as t
            gradscale_autoload.autoload()
            importlib.reload(t)
            assert [name.value for name in t.OptimizerNames] == ["sgd", *gradscale.registry.REGISTRY]
            """,
            USE,
        )
        self.assertEqual(out, "registered")

    def test_the_switch(self):
        for value in ("0", "false", "OFF", "no"):
            out = self.python(UNKNOWN, "import sys; print('gradscale' in sys.modules)", GRADSCALE_AUTOLOAD=value)
            self.assertEqual(out, "['sgd']\nFalse")

    def test_importing_gradscale_imports_neither_torch_nor_transformers(self):
        out = self.python("import sys, gradscale; print([m for m in ('torch', 'transformers') if m in sys.modules])")
        self.assertEqual(out, "[]")

    def test_unknown_transformers_is_silent_behind_torch(self):
        self.write("transformers/training_args.py", "import torch\nclass OptimizerNames(int): pass")
        out = self.python(
            """
            import warnings
            warnings.simplefilter("error")
            import transformers.training_args
            from gradscale.integrations.registration import failures
            print(list(failures()))
            """
        )
        self.assertEqual((out, self.stderr), ("['transformers.training_args']", ""))

    def test_unknown_transformers_warns_when_asked_for(self):
        self.write("transformers/training_args.py", "class OptimizerNames(int): pass")
        for code in ("import gradscale, transformers.training_args", "import transformers.training_args, gradscale"):
            self.python(code)
            self.assertIn("could not extend transformers.training_args of transformers 9.9", self.stderr)

    def test_trainer_without_the_method(self):
        self.write("transformers/trainer.py", "class Trainer: pass")
        self.python("import gradscale, transformers.trainer")
        self.assertIn("get_optimizer_cls_and_kwargs", self.stderr)

    def test_a_broken_gradscale_does_not_break_torch(self):
        self.write("gradscale/__init__.py", "raise RuntimeError('broken')")
        self.assertEqual(self.python("import torch, gradscale_autoload; print(gradscale_autoload.failure)"), "broken")

    def test_missing_library(self):
        out = self.python(
            """
            import gradscale.registry as registry, dataclasses, types
            entry = registry.get_entry("sgg_adamw")
            entry = dataclasses.replace(entry, name="new_one", requires={"absent_lib": "absent>=2"})
            registry.REGISTRY = types.MappingProxyType({**registry.REGISTRY, "new_one": entry})
            from transformers.training_args import TrainingArguments
            try:
                TrainingArguments(optim="new_one")
            except ImportError as error:
                print(error)
            """
        )
        self.assertEqual(out, "--optim new_one needs absent_lib, which is missing: pip install 'absent>=2'")


if __name__ == "__main__":
    unittest.main()
