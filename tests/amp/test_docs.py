"""The examples of docs/gradient_scaling.md run as they stand there."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "gradient_scaling.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("code", EXAMPLES)
def test_it_runs(code):
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    controller = names["scaler"].controller if "scaler" in names else names["controller"]
    assert controller.steps == 20 and names["loss"].isfinite()
