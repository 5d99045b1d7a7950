"""Imports a recipe's script as a module, and keeps what its trainers had before and after."""

import contextlib
import importlib.util
import sys
from pathlib import Path

import datasets

RECIPES = Path(__file__).parents[2] / "recipes"


def script(name):
    """The module of `recipes/NAME/train.py`; its neighbours are imported as they are when it is started by its path."""
    sys.path.insert(0, str(RECIPES / name))
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / name / "train.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(RECIPES / name))
    return module


@contextlib.contextmanager
def watched(monkeypatch, module, name="Trainer"):
    """Trainers that the script makes meanwhile, each with `before`: its parameters before training."""
    made = []

    class Watched(getattr(module, name)):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.before = {key: param.detach().clone() for key, param in self.model.named_parameters()}
            made.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, Watched)
        yield made


def smoke(monkeypatch, folder, recipe, setting, *arguments, trainer="Trainer"):
    """Run a setting's smoke variant; return its results and its trainers."""
    module = script(recipe)
    fixed = ["--smoke", "--disable_tqdm", "true", "--output_dir", str(folder)]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder.parent / f"{folder.name}-cache")
    with watched(monkeypatch, module, trainer) as made:
        results = module.main(["--config", str(RECIPES / recipe / f"{setting}.yaml"), *fixed, *arguments])
    return results, made


def trained(trainer):
    """Names of parameters that are trained, after checking that these and only these have changed."""
    names = set()
    for name, param in trainer.model.named_parameters():
        same = param.detach().equal(trainer.before[name])
        assert same != param.requires_grad, f"{name}: requires_grad={param.requires_grad}, unchanged={same}"
        if param.requires_grad:
            names.add(name)
    return names
