"""Option kinds and the registry: one table serves constructors, the command line and the docs."""

import inspect

import pytest
import torch

from gradscale import SGGAdamW
from gradscale.optim.sgg_options import SGGOptions
from gradscale.option_tables import ADAM, COMMON, LAMB, LION, SGD, SGG, STEP
from gradscale.options import Interval, OptionError, Pair, Real, check_options
from gradscale.registry import ENTRIES, REGISTRY, get_entry


@pytest.mark.parametrize("table", [ADAM, SGD, LION, LAMB, COMMON, SGG, STEP])
def test_defaults_are_allowed_by_their_own_kind(table):
    for name, option in table.items():
        assert option.kind.check(option.default) == option.default, name
        assert option.help and option.kind.allowed


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if not entry.whole_layers], ids=lambda entry: entry.name)
def test_every_entry_names_a_class_that_takes_its_options_with_the_tables_defaults(entry):
    cls = entry.load()
    optimizer = cls([torch.nn.Parameter(torch.ones(2, 2))])
    own_rates = len(optimizer.param_groups) - 1
    elsewhere = {"kernel": optimizer.kernel, "embedding_lr_factor": 1.0 + own_rates}
    for name, option in entry.options.items():
        made = elsewhere[name] if name in elsewhere else optimizer.defaults[name]
        assert made == option.default, name


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_says_what_trainers_fill_in_of_its_options(entry):
    assert set(entry.trainer_fields) | set(entry.trainer_defaults) <= set(entry.options)
    for name, value in entry.trainer_defaults.items():
        entry.options[name].kind.check(value)
    assert list(inspect.signature(entry.load()).parameters)[:2] == ["params", "lr"]


def test_unknown_names_give_the_nearest():
    assert get_entry("sgg_adamw") is REGISTRY["sgg_adamw"]
    with pytest.raises(ValueError, match="did you mean 'sgg_adamw'"):
        get_entry("sgg_adamww")
    with pytest.raises(OptionError, match="did you mean 'n_clusters'"):
        check_options({"nclusters": 3}, SGG, owner="sgg_adamw")


def test_canonical_types():
    assert Pair(Real(0, 1)).check([0, 1]) == (0.0, 1.0)
    assert isinstance(Real().check(3), float)
    assert Interval().check(5) == 5 and Interval().check(0.5) == 0.5
    assert check_options({"scale_bounds": [1, 2]}, SGG, owner="x") == {"scale_bounds": (1.0, 2.0)}


def test_keywords_that_type_checkers_know_are_those_of_the_table():
    assert set(SGGOptions.__annotations__) == {*SGG, "total_steps", "preset"}


def test_a_mistyped_keyword_names_the_nearest():
    with pytest.raises(
        TypeError, match=r"SGGAdamW\(\) got an unexpected keyword argument 'n_cluster', did you mean 'n_c"
    ):
        SGGAdamW([torch.nn.Parameter(torch.zeros(2, 2))], n_cluster=3)
