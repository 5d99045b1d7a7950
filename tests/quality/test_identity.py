"""Finished cells stay finished: what a study has of new keys, presets and defaults must not make old cells others.

Guards against hours of training that a release throws away, and against cells that are taken for those of a setting
that has another meaning now.
"""

import hashlib
import json

import pytest

from gradscale.presets import PRESETS
from gradscale.quality import identity
from gradscale.quality.cell import Cell
from gradscale.quality.identity import asked
from gradscale.quality.study import study_of

FIRST_OPTIONS = {"n_clusters": 3, "scale_decay": 0.9, "momentum_sign": "signed", "labels": "frozen"}
# A study as it was asked for by the first version, which knew neither Nesterov's momentum nor compiled models.
FIRST = {
    "model_config": {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "tie_word_embeddings": False,
    },
    "vocab_size": 260,
    "corpus": "stdlib",
    "block_size": 128,
    "max_eval_tokens": 102400,
    "eval_every": 75,
    "optimizers": {
        "adamw": {"optim": "torch.optim.AdamW", "learning_rates": [7e-4]},
        "adamw-embedding-8": {"optim": "torch.optim.AdamW", "learning_rates": [2e-3], "rates": {"embedding": 8}},
        "sgg": {
            "optim": "sgg_adamw",
            "options": {
                "recluster_interval": 0.06,
                **FIRST_OPTIONS,
                "scope": "all",
                "global_mda": "clusters",
                "nesterov": False,
            },
            "rates": {"embedding": 1},
            "learning_rates": [1e-3],
        },
    },
}


def study(**arm):
    arm = {"optim": "sgg_adamw", "learning_rates": [1e-3], **arm}
    return study_of({"model_config": "llama-1m", "corpus": "stdlib", "optimizers": {"sgg": arm}})


def of(**arm):
    return asked(study(**arm), Cell("sgg", 1e-3, 1))


@pytest.mark.parametrize(
    ("arm", "lr", "key"),
    [("adamw", 7e-4, "512c1b9ae9fd"), ("adamw-embedding-8", 2e-3, "55ec9caff1dc")],
)
def test_cells_of_the_first_version_are_still_known(arm, lr, key):
    values = asked(study_of(FIRST), Cell(arm, lr, 1))
    assert hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12] == key


def test_keys_that_came_later_count_where_they_are_given():
    assert not {"unscaled", "lora", "rest"} & of()["arm"].keys()
    assert of(unscaled=["head"])["arm"]["unscaled"] == ["head"]
    assert of(lora={"r": 4})["arm"]["lora"] == {"r": 4, "target_modules": "all-linear"}


def test_what_the_first_version_did_is_asked_for_as_it_was_then():
    values = asked(study_of(FIRST), Cell("sgg", 1e-3, 1))
    assert values["arm"]["options"] == {"recluster_interval": 0.06, "global_mda": "clusters", **FIRST_OPTIONS}
    assert "compile" not in values["arm"]["schedule"] and "micro_batch_size" not in values["arm"]["schedule"]


def test_a_preset_is_the_values_that_it_has():
    assert of(options={"preset": "default"}) == of()
    paper = of(options={"preset": "paper", "n_clusters": 2})
    plain = {"nesterov": False, "embedding_lr_factor": 1}
    assert paper == of(options={**json.loads(json.dumps(dict(PRESETS["paper"]))), "n_clusters": 2, **plain})


def test_a_rate_of_the_embedding_that_the_study_gives_stands_for_the_optimizers_own():
    own = {"n_clusters": 8, "scale_decay": 0.5, "momentum_sign": "absolute", "labels": "live", "scope": "auto"}
    own |= {"global_mda": "layer", "nesterov": True}
    # "auto" has meant another number before.
    assert of()["arm"]["options"] == {**own, "embedding_lr_factor": "auto: 16"}
    assert of(rates={"embedding": 8})["arm"]["options"] == own
    assert of(compile=True)["arm"]["schedule"]["compile"] is True


def test_a_default_that_changes_asks_for_new_cells_and_keeps_those_that_said_it_themselves(monkeypatch):
    own = dict(of()["arm"]["options"])
    before, explicit = of(), of(options={"min_layer_size": 48})
    changed = {**PRESETS["default"], "min_layer_size": 64}
    monkeypatch.setattr(identity, "PRESETS", {**PRESETS, "default": changed})
    assert of() != before and of()["arm"]["options"] == {**own, "min_layer_size": 64}
    assert of(options={"min_layer_size": 48}) == explicit
    adamw = {**before["arm"], "optim": "torch.optim.AdamW", "options": {}}
    assert of(optim="torch.optim.AdamW") == {**before, "arm": adamw}
