"""The page on the adapters: its example runs as written, and what it says of torch's own optimizers holds."""

import re
from pathlib import Path

import pytest
import torch

from gradscale import SGG, OptionError
from tests.adapter.bases import parameters

PAGE = Path(__file__).parents[2] / "docs" / "adapter.md"
# Told apart from what torch.optim has beside optimizers of dense tensors.
NOT_FOR_DENSE = {"Optimizer", "SparseAdam"}


def test_the_example_runs_as_written():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert isinstance(names["optimizer"], SGG) and names["optimizer"].param_groups[0]["sgg_steps"] == 3


def test_which_of_torchs_optimizers_are_refused():
    (sentence,) = re.findall(r"Of torch's own optimizers (.*?) are refused, (.*?) are not\.", PAGE.read_text())
    refused, taken = ({name.strip() for name in re.split(",| and ", part)} for part in sentence)
    kinds = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)} | {
        "Muon": torch.optim.Muon
    }
    found = {name for name, kind in kinds.items() if issubclass(kind, torch.optim.Optimizer)} - NOT_FOR_DENSE
    assert refused | taken == found
    for name in found:
        base = getattr(torch.optim, name)(parameters(shapes=[(20, 30), (9, 20)]))
        if name in refused:
            with pytest.raises(OptionError):
                SGG(base)
        else:
            SGG(base)
