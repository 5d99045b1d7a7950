"""Finished cells stay finished: what a study has of new keys, presets and defaults must not make old cells others.

Guards against hours of training that a release throws away, and against cells that are taken for those of a setting
that has another meaning now.
"""

import hashlib
import json
from pathlib import Path

import pytest

from gradscale.presets import PRESETS
from gradscale.quality import identity
from gradscale.quality.cell import Cell
from gradscale.quality.identity import asked
from gradscale.quality.study import read_study, study_of

SMALL = Path(__file__).parents[2] / "recipes/quality/small.yaml"


def study(**arm):
    arm = {"optim": "sgg_adamw", "learning_rates": [1e-3], **arm}
    return study_of({"model_config": "llama-1m", "corpus": "stdlib", "optimizers": {"sgg": arm}})


def of(**arm):
    return asked(study(**arm), Cell("sgg", 1e-3, 1))


@pytest.mark.parametrize(
    ("arm", "lr", "key"),
    [("adamw", 7e-4, "512c1b9ae9fd"), ("adamw-embedding-8", 2e-3, "55ec9caff1dc"), ("sgg", 1e-3, "24b331e3c2d8")],
)
def test_cells_of_the_first_version_are_still_those_of_the_small_study(arm, lr, key):
    values = asked(read_study(SMALL), Cell(arm, lr, 1))
    assert hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12] == key


def test_keys_that_came_later_count_where_they_are_given():
    assert not {"unscaled", "lora", "rest"} & of()["arm"].keys()
    assert of(unscaled=["head"])["arm"]["unscaled"] == ["head"]
    assert of(lora={"r": 4})["arm"]["lora"] == {"r": 4, "target_modules": "all-linear"}


def test_a_preset_is_the_values_that_it_has():
    assert of(options={"preset": "default"}) == of()
    paper = of(options={"preset": "paper", "n_clusters": 2})
    assert paper == of(options={**json.loads(json.dumps(dict(PRESETS["paper"]))), "n_clusters": 2})


def test_a_default_that_changes_asks_for_new_cells_and_keeps_those_that_said_it_themselves(monkeypatch):
    before, explicit = of(), of(options={"scale_decay": 0.9})
    changed = {**PRESETS["default"], "scale_decay": 0.95}
    monkeypatch.setattr(identity, "PRESETS", {**PRESETS, "default": changed})
    assert of() != before and of()["arm"]["options"] == {"scale_decay": 0.95}
    assert of(options={"scale_decay": 0.9}) == explicit
    assert of(optim="torch.optim.AdamW") == {**before, "arm": {**before["arm"], "optim": "torch.optim.AdamW"}}
