"""Studies: what a file may say, and that what is wrong is said before anything runs."""

import copy

import pytest

from gradscale.options import OptionError
from gradscale.quality.optimizers import class_and_options
from gradscale.quality.study import read_study, study_of
from gradscale.training.errors import ConfigError

STUDY = {
    "model_config": {"model_type": "llama"},
    "corpus": "stdlib",
    "steps": 30,
    "optimizers": {
        "adamw": {"optim": "torch.optim.AdamW", "learning_rates": [2e-3, 1e-3]},
        "sgg": {"optim": "sgg_adamw", "learning_rates": [1e-3], "options": {"n_clusters": 2}, "weight_decay": 0.0},
        "fixed": {"optim": "torch.optim.AdamW", "learning_rates": [1e-3], "multipliers_from": "sgg"},
    },
}


def changed(where, value):
    study = copy.deepcopy(STUDY)
    place = study
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    return study


def test_an_optimizer_has_the_schedule_of_the_study_but_for_what_it_says_itself():
    study = study_of(STUDY)
    assert study.arms["adamw"].schedule.steps == study.arms["sgg"].schedule.steps == 30
    assert (study.arms["adamw"].schedule.weight_decay, study.arms["sgg"].schedule.weight_decay) == (0.1, 0.0)
    assert study.arms["adamw"].learning_rates == (1e-3, 2e-3)
    assert study.baseline == "adamw" and study.select_seeds == study.seeds == (1, 2, 3)


def test_betas_are_those_of_the_study_where_an_optimizers_own_are_adams():
    arms = study_of(STUDY).arms
    assert class_and_options(arms["adamw"])[1]["betas"] == (0.9, 0.99)
    assert class_and_options(arms["sgg"])[1]["betas"] == (0.9, 0.99)
    sgd = study_of(changed(["optimizers", "adamw", "optim"], "torch.optim.SGD")).arms["adamw"]
    assert "betas" not in class_and_options(sgd)[1]


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (["stps"], 3, "unknown key 'stps', did you mean 'steps'"),
        (["steps"], 1, "steps=1 is not allowed"),
        (["seeds"], [1.5], "seeds=1.5 is not allowed"),
        (["optimizers"], {}, "optimizers is empty"),
        (["baseline"], "adam", "baseline='adam' is no optimizer of the study, did you mean 'adamw'"),
        (["optimizers", "sgg", "optm"], 1, "sgg: unknown key 'optm', did you mean 'optim'"),
        (["optimizers", "sgg", "learning_rates"], [], "sgg: learning_rates=.. is not allowed"),
        (["optimizers", "sgg", "learning_rates"], [-1.0], "sgg: learning_rates=-1.0 is not allowed"),
        (["optimizers", "sgg", "rates"], {"embeddings": 2}, "rates has no 'embeddings', did you mean 'embedding'"),
        (["optimizers", "sgg", "control"], "shuffled", "sgg: control='shuffled' is not allowed"),
        (["optimizers", "fixed", "multipliers_from"], "fixed", "multipliers_from='fixed' is not allowed"),
        (["optimizers", "sgg", "schedule"], "cosin", "sgg: schedule='cosin' is not allowed"),
        (["corpus"], None, "data is missing"),
    ],
)
def test_what_is_wrong_is_named(where, value, said):
    with pytest.raises((ConfigError, OptionError), match=said):
        study_of(changed(where, value))


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (["optimizers", "sgg", "optim"], "sgg_adamww", "sgg: 'sgg_adamww' is unknown, did you mean 'sgg_adamw'"),
        (["optimizers", "sgg", "optim"], "torch.optim.Adamw", "sgg: torch.optim has no 'Adamw', did you mean 'Adam'"),
        (["optimizers", "sgg", "options"], {"n_clusters": 0}, "sgg: options: n_clusters=0 is not allowed"),
    ],
)
def test_optimizers_and_their_options_are_checked_before_anything_runs(where, value, said):
    arm = study_of(changed(where, value)).arms["sgg"]
    with pytest.raises(ConfigError, match=said):
        class_and_options(arm)


def test_a_file_that_is_missing_or_malformed_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_study(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="expected a mapping"):
        read_study(tmp_path / "list.yaml")
