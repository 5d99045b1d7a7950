"""The recipes of `gradscale train`: YAML files that stand alone. Those beside a script are the script's."""

from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(
    path
    for path in FOLDER.rglob("*.yaml")
    if path.relative_to(FOLDER).parts[0] != "quality" and not list(path.parent.glob("*.py"))
)


def variants_of(path):
    return list(yaml.safe_load(path.read_text()).get("variants") or {})


def title(value):
    return value.stem if isinstance(value, Path) else str(value or "plain")
